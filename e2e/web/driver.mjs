// driver.mjs drives tabs of Chromium, each with a real database of the official
// web SDK, by the same JSON lines as ../client/client.mjs:
//
// stdin:  {"id":1,"op":"open","client":"a", ...}      one request a line
// stdout: {"id":1,"ok":true,"result":...}             one answer a request
//         {"id":1,"ok":false,"error":"..."}
//         {"event":"upload","client":"a", ...}        things that happen by themselves
//
// A client is one tab. Tabs with the same `profile` share a browser context, so
// they share the SDK's workers and the database, as tabs of one app do; the
// profile is the client's name unless it is given, and outlives its tabs. Ops
// that the page does not know: `offline` unplugs a profile's network, `close`
// closes the tab as a user does, without a word to the SDK.
//
// The page comes from this process, the sync service from another origin, so
// every request of the SDK is subject to CORS. Chromium is $SLUICE_CHROMIUM.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { dirname, extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { chromium } from 'playwright-core';

const here = dirname(fileURLToPath(import.meta.url));
const WORKERS = join(here, 'node_modules/@powersync/web/dist/worker');
const TYPES = { '.js': 'text/javascript', '.wasm': 'application/wasm', '.html': 'text/html', '.map': 'application/json' };
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync'
];

function emit(message) {
  process.stdout.write(JSON.stringify(message) + '\n');
}

// bundle makes one script of the page. SQLite itself runs in the SDK's workers,
// which come as they are in the package, so it stays outside.
async function bundle() {
  const result = await build({
    entryPoints: [join(here, 'page.mjs')],
    bundle: true,
    format: 'esm',
    target: 'es2022',
    write: false,
    external: ['@journeyapps/wa-sqlite/dist/*', '@journeyapps/wa-sqlite/src/examples/*'],
    logLevel: 'error'
  });
  return result.outputFiles[0].contents;
}

async function serve() {
  const page = await bundle();
  const server = createServer(async (request, response) => {
    const path = normalize(new URL(request.url, 'http://page').pathname);
    let type = extname(path);
    let body;
    try {
      if (path === '/') {
        type = '.html';
        body = '<!doctype html><title>e2e</title><link rel="icon" href="data:,"><script type="module" src="/page.js"></script>';
      } else if (path === '/page.js') {
        body = page;
      } else if (path.startsWith('/worker/')) {
        body = await readFile(join(WORKERS, path.slice('/worker/'.length)));
      }
    } catch (error) {
      process.stderr.write(`${path}: ${error.message}\n`);
    }
    if (body === undefined) response.writeHead(404).end();
    else response.writeHead(200, { 'content-type': TYPES[type] ?? 'application/octet-stream' }).end(body);
  });
  await new Promise((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve));
  return { server, url: `http://127.0.0.1:${server.address().port}/` };
}

const { server, url } = await serve();
const browser = await chromium.launch({ executablePath: process.env.SLUICE_CHROMIUM ?? '/usr/bin/chromium', args: FLAGS });
const profiles = new Map(); // name -> browser context
const tabs = new Map(); // client -> {page, profile}
const uploads = new Map(); // upload number -> {resolve, reject}
let uploadNumber = 0;

async function profile(name) {
  let context = profiles.get(name);
  if (!context) {
    context = await browser.newContext();
    profiles.set(name, context);
    // A local transaction for the app's backend, which is whoever reads our events.
    await context.exposeFunction('outside', (message) => {
      const number = ++uploadNumber;
      const answered = new Promise((resolve, reject) => uploads.set(number, { resolve, reject }));
      emit({ ...message, upload: number });
      return answered;
    });
  }
  return context;
}

function find(request) {
  const tab = tabs.get(request.client);
  if (!tab) throw new Error(`no client ${request.client}`);
  return tab;
}

async function inTab(page, op, request) {
  const answer = await page.evaluate(([op, request]) => window.tab(op, request), [op, request]);
  if (!answer.ok) throw new Error(answer.error);
  return answer.result;
}

const operations = {
  async open(request) {
    if (tabs.has(request.client)) throw new Error(`client ${request.client} is open`);
    const name = request.profile ?? request.client;
    const context = await profile(name);
    const page = await context.newPage();
    const say = (text) => process.stderr.write(`[${request.client}] ${text}\n`);
    page.on('console', (message) => say(message.text()));
    page.on('pageerror', (error) => say(`uncaught: ${error.message}`));
    await page.goto(url);
    await page.waitForFunction(() => window.tab !== undefined);
    tabs.set(request.client, { page, profile: name });
    return await inTab(page, 'open', request);
  },
  async close(request) {
    const { page } = find(request);
    tabs.delete(request.client);
    await page.close();
  },
  async offline(request) {
    await profiles.get(find(request).profile).setOffline(request.offline);
  },
  async uploaded(request) {
    const pending = uploads.get(request.upload);
    if (!pending) throw new Error(`no upload ${request.upload}`);
    uploads.delete(request.upload);
    if (request.error) pending.reject(new Error(request.error));
    else pending.resolve();
  }
};

const input = createInterface({ input: process.stdin });
input.on('line', async (line) => {
  let request;
  try {
    request = JSON.parse(line);
    const operation = operations[request.op];
    const result = operation ? await operation(request) : await inTab(find(request).page, request.op, request);
    emit({ id: request.id, ok: true, result: result ?? null });
  } catch (error) {
    emit({ id: request?.id ?? null, ok: false, error: error.message });
  }
});
input.on('close', async () => {
  await browser.close();
  server.closeAllConnections();
  server.close(() => process.exit(0));
});
emit({ event: 'ready', node: process.versions.node, chromium: browser.version() });
