// Shows that the driver drives the SDK, against a server of a few lines that
// speaks just enough of the protocol: so a failing suite against the real
// gateway is the gateway's fault.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, beforeEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { serialize } from 'bson';

const here = dirname(fileURLToPath(import.meta.url));
const BSON = 'application/vnd.powersync.bson-stream';

// Service is the throw-away sync service: a list of lines for whoever connects.
class Service {
  requests = [];
  streams = new Set();
  lines = [];
  writeCheckpoints = 0;
  contentType = 'application/x-ndjson';

  async start() {
    this.server = createServer(async (request, response) => {
      let body = '';
      for await (const piece of request) body += piece;
      if (request.url.startsWith('/write-checkpoint2.json')) {
        this.writeCheckpoints++;
        response.setHeader('content-type', 'application/json');
        response.end(JSON.stringify({ data: { write_checkpoint: String(this.writeCheckpoints) } }));
        this.onWriteCheckpoint?.(this.writeCheckpoints);
        return;
      }
      if (request.headers.authorization !== 'Token good') {
        response.writeHead(401, { 'content-type': 'application/json' });
        response.end(JSON.stringify({ error: { code: 'PSYNC_S2101', status: 401, description: 'no', name: 'AuthorizationError' } }));
        return;
      }
      this.requests.push(JSON.parse(body));
      response.writeHead(200, { 'content-type': this.contentType });
      this.streams.add(response);
      response.on('close', () => this.streams.delete(response));
      for (const line of this.lines) response.write(this.encode(line));
    });
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    this.url = `http://127.0.0.1:${this.server.address().port}`;
  }

  encode(line) {
    return this.contentType === BSON ? serialize(line) : JSON.stringify(line) + '\n';
  }

  send(...lines) {
    for (const line of lines) for (const stream of this.streams) stream.write(this.encode(line));
  }

  stop() {
    this.server.closeAllConnections();
    this.server.close();
  }
}

// Driver is the other side of client.mjs: what the Go harness is in the suites.
class Driver {
  next = 0;
  waiting = new Map();
  events = [];
  listeners = new Set();

  constructor() {
    this.process = spawn(join(here, 'run'), ['client.mjs'], { stdio: ['pipe', 'pipe', 'inherit'] });
    createInterface({ input: this.process.stdout }).on('line', (text) => {
      const message = JSON.parse(text);
      if (message.event) {
        this.events.push(message);
        for (const listener of this.listeners) listener(message);
        return;
      }
      const { resolve, reject } = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      message.ok ? resolve(message.result) : reject(new Error(message.error));
    });
  }

  call(op, request = {}) {
    const id = ++this.next;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.process.stdin.write(JSON.stringify({ id, op, ...request }) + '\n');
    });
  }

  event(matches) {
    return new Promise((resolve) => {
      const found = this.events.find(matches);
      if (found) return resolve(found);
      const listener = (message) => {
        if (!matches(message)) return;
        this.listeners.delete(listener);
        resolve(message);
      };
      this.listeners.add(listener);
    });
  }

  async stop() {
    this.process.stdin.end();
    await once(this.process, 'exit');
  }
}

const put = (op, id, name, checksum) => ({
  op_id: String(op), op: 'PUT', object_type: 'lists', object_id: id, subkey: `t/${id}`, checksum,
  data: JSON.stringify({ id, name })
});
const bucket = (checksum, count) => ({ bucket: '1#lists|0["u1"]', checksum, count, priority: 3, subscriptions: [{ default: 0 }] });
const data = (afterOp, ops) => ({ data: { bucket: '1#lists|0["u1"]', after: String(afterOp), has_more: false, data: ops, next_after: ops.at(-1).op_id } });
const streams = [{ name: 'lists', is_default: true, errors: [] }];
const first = [
  { checkpoint: { last_op_id: '2', buckets: [bucket(30, 2)], streams } },
  data(0, [put(1, 'a', 'first', 10), put(2, 'b', 'second', 20)]),
  { checkpoint_complete: { last_op_id: '2' } }
];
const schema = { lists: { name: 'text' } };

let folder, service, driver;
let opened = 0;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sluice-client-'));
  service = new Service();
  await service.start();
  driver = new Driver();
  await driver.event((m) => m.event === 'ready');
});
after(async () => {
  await driver.stop();
  service.stop();
  await rm(folder, { recursive: true });
});
beforeEach(() => {
  service.requests = [];
  service.lines = first;
  service.contentType = 'application/x-ndjson';
  service.onWriteCheckpoint = undefined;
});

async function open(options = {}) {
  const client = `c${++opened}`;
  await driver.call('open', { client, path: join(folder, `${client}.db`), schema, endpoint: service.url, token: 'good', retry_delay_ms: 20, ...options });
  await driver.call('connect', { client });
  return client;
}

const names = async (client) => (await driver.call('query', { client, sql: 'SELECT name FROM lists ORDER BY id' })).map((r) => r.name);

// rows waits until the client's table holds these names.
async function rows(client, ...expected) {
  const as = `w${++driver.next}`;
  await driver.call('watch', { client, as, sql: 'SELECT name FROM lists ORDER BY id' });
  await driver.event((m) => m.watch === as && JSON.stringify(m.rows.map((r) => r.name)) === JSON.stringify(expected));
}

for (const contentType of ['application/x-ndjson', BSON]) {
  test(`first sync, live change, resume (${contentType})`, { timeout: 30_000 }, async () => {
    service.contentType = contentType;
    const client = await open();
    await driver.call('first_sync', { client, timeout_ms: 10_000 });
    assert.deepEqual(await names(client), ['first', 'second']);

    service.send(
      { checkpoint_diff: { last_op_id: '3', updated_buckets: [bucket(37, 3)], removed_buckets: [] } },
      data(2, [put(3, 'b', 'changed', 7)]),
      { checkpoint_complete: { last_op_id: '3' } }
    );
    await rows(client, 'first', 'changed');

    service.lines = [
      { checkpoint: { last_op_id: '3', buckets: [bucket(37, 3)], streams } },
      { checkpoint_complete: { last_op_id: '3' } }
    ];
    const completed = (await driver.call('stats', { client })).lines.checkpoint_complete;
    await driver.call('disconnect', { client });
    await driver.call('connect', { client });
    let stats;
    do stats = await driver.call('stats', { client });
    while (stats.lines.checkpoint_complete === completed);
    assert.equal(stats.connects, 2);
    assert.equal(stats.ops_total, 3, 'nothing was downloaded twice');
    assert.deepEqual(service.requests.at(-1).buckets, [{ name: '1#lists|0["u1"]', after: '3' }]);
    assert.deepEqual(stats.checksum_failures, []);
    assert.deepEqual(stats.out_of_order, []);
    await driver.call('close', { client });
  });
}

test('a wrong checksum is seen and counted', { timeout: 30_000 }, async () => {
  service.lines = [
    { checkpoint: { last_op_id: '2', buckets: [bucket(31, 2)], streams } },
    first[1],
    { checkpoint_complete: { last_op_id: '2' } }
  ];
  const client = await open();
  let stats;
  do stats = await driver.call('stats', { client });
  while (stats.checksum_failures.length === 0);
  await driver.call('close', { client });
});

test('a local write is uploaded and acknowledged by a write checkpoint', { timeout: 30_000 }, async () => {
  const client = await open();
  await driver.call('first_sync', { client, timeout_ms: 10_000 });
  service.onWriteCheckpoint = (n) =>
    service.send(
      { checkpoint_diff: { last_op_id: '3', write_checkpoint: String(n), updated_buckets: [bucket(35, 3)], removed_buckets: [] } },
      data(2, [put(3, 'c', 'from the source', 5)]),
      { checkpoint_complete: { last_op_id: '3' } }
    );
  await driver.call('execute', { client, statements: [["INSERT INTO lists(id, name) VALUES ('c', 'local')"]] });
  assert.deepEqual(await names(client), ['first', 'second', 'local']);
  const upload = await driver.event((m) => m.event === 'upload' && m.client === client);
  assert.deepEqual(upload.crud, [{ op: 'PUT', table: 'lists', id: 'c', data: { name: 'local' } }]);
  await driver.call('uploaded', { upload: upload.upload });
  await rows(client, 'first', 'second', 'from the source');
  assert.equal((await driver.call('stats', { client })).write_checkpoint, String(service.writeCheckpoints));
  await driver.call('close', { client });
});

test('a refused token is reported and a new one is used', { timeout: 30_000 }, async () => {
  const client = await open({ token: 'bad' });
  let status;
  do status = await driver.call('status', { client });
  while (!status.download_error.includes('PSYNC_S2101'));
  await driver.call('set', { client, options: { token: 'good' } });
  await driver.call('first_sync', { client, timeout_ms: 10_000 });
  await driver.call('close', { client });
});

test('a subscription is asked for', { timeout: 30_000 }, async () => {
  const client = await open();
  await driver.call('first_sync', { client, timeout_ms: 10_000 });
  await driver.call('subscribe', { client, as: 's', stream: 'topic', params: { topic: 't1' } });
  while (service.requests.at(-1).streams.subscriptions.length === 0) await driver.call('status', { client });
  assert.deepEqual(service.requests.at(-1).streams.subscriptions, [
    { stream: 'topic', parameters: { topic: 't1' }, override_priority: null }
  ]);
  await driver.call('unsubscribe', { client, as: 's' });
  await driver.call('close', { client });
});

test('a check reads all the time and keeps what must not be seen', { timeout: 30_000 }, async () => {
  const client = await open();
  await driver.call('first_sync', { client, timeout_ms: 10_000 });
  await driver.call('check', { client, as: 'quiet', sql: "SELECT id FROM lists WHERE name = 'never'" });
  await driver.call('check', { client, as: 'loud', sql: "SELECT id FROM lists WHERE name = 'first' OR name = 'second'" });
  await rows(client, 'first', 'second');
  const quiet = await driver.call('check_stop', { client, as: 'quiet' });
  assert.ok(quiet.reads > 0);
  assert.deepEqual(quiet.violations, []);
  const loud = await driver.call('check_stop', { client, as: 'loud' });
  assert.deepEqual(JSON.parse(loud.violations[0]), [{ id: 'a' }, { id: 'b' }]);
  await driver.call('close', { client });
});
