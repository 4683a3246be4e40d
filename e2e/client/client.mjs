// client.mjs drives real client databases of the official SDK by JSON lines.
//
// stdin:  {"id":1,"op":"open","client":"a", ...}      one request a line
// stdout: {"id":1,"ok":true,"result":...}             one answer a request
//         {"id":1,"ok":false,"error":"..."}
//         {"event":"upload","client":"a", ...}        things that happen by themselves
//
// Nothing else is written to stdout; the SDK's own log goes to stderr. One
// process holds any number of databases, so that a test of fifty clients does
// not start fifty of them. The process ends when stdin does.

import { createInterface } from 'node:readline';
import { PowerSyncDatabase, Schema, Table, column, SyncStreamConnectionMethod, LogLevels } from '@powersync/node';
import { Tap } from './tap.mjs';

const TRANSPORTS = { http: SyncStreamConnectionMethod.HTTP, websocket: SyncStreamConnectionMethod.WEB_SOCKET };
const clients = new Map();
const uploads = new Map(); // upload number -> {resolve, reject}
let uploadNumber = 0;

function emit(message) {
  process.stdout.write(JSON.stringify(message, (_, v) => (typeof v === 'bigint' ? v.toString() : v)) + '\n');
}

class Client {
  constructor(request) {
    this.name = request.client;
    this.options = request;
    this.tap = new Tap();
    this.subscriptions = new Map();
    this.checks = new Map();
    const level = LogLevels[request.log ?? 'warn'];
    this.db = new PowerSyncDatabase({
      schema: schemaOf(request.schema),
      database: { dbFilename: request.path, implementation: { type: 'node:sqlite' }, readWorkerCount: 1 },
      logger: {
        log: ({ level: l, message, error }) => {
          if (l >= level) process.stderr.write(`[${this.name}] ${message}${error ? `: ${describe(error)}` : ''}\n`);
        }
      }
    });
    this.tap.attach(this.db.database);
  }

  connector() {
    return {
      fetchCredentials: async () => {
        if (this.options.token == null) return null;
        return { endpoint: this.options.endpoint, token: this.options.token };
      },
      uploadData: async (db) => {
        for (let tx = await db.getNextCrudTransaction(); tx; tx = await db.getNextCrudTransaction()) {
          const checkpoint = await this.upload(
            tx.crud.map((e) => ({ op: e.op, table: e.table, id: e.id, data: e.opData ?? null }))
          );
          await tx.complete(checkpoint);
          if (checkpoint !== undefined) await keepTarget(db, checkpoint);
        }
      }
    };
  }

  // upload hands one local transaction to the app backend: to a URL where the
  // test serves one, else to whoever reads our events, and who may answer with a
  // custom write checkpoint.
  async upload(crud) {
    if (this.options.upload_url) {
      const response = await fetch(this.options.upload_url, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ client: this.name, crud })
      });
      if (!response.ok) throw new Error(`upload: ${response.status} ${await response.text()}`);
      return undefined;
    }
    const number = ++uploadNumber;
    const answered = new Promise((resolve, reject) => uploads.set(number, { resolve, reject }));
    emit({ event: 'upload', client: this.name, upload: number, crud });
    return await answered;
  }

  connect() {
    const o = this.options;
    // The SDK's promise resolves when the first attempt has succeeded or failed;
    // the SDK goes on trying by itself, so nothing here waits for it.
    this.db
      .connect(this.connector(), {
        connectionMethod: TRANSPORTS[o.transport ?? 'http'],
        retryDelayMs: o.retry_delay_ms ?? 200,
        crudUploadThrottleMs: o.upload_throttle_ms ?? 50,
        params: o.params ?? {},
        appMetadata: o.app_metadata ?? {},
        includeDefaultStreams: o.include_defaults ?? true,
        checkpointMode: o.checkpoint_mode ?? 'legacy'
      })
      .catch((error) => process.stderr.write(`[${this.name}] connect: ${describe(error)}\n`));
  }

  status() {
    const s = this.db.currentStatus;
    return {
      connected: s.connected,
      connecting: s.connecting,
      downloading: s.downloading,
      uploading: s.uploading,
      has_synced: s.hasSynced ?? false,
      last_synced_at_ms: s.lastSyncedAt?.getTime() ?? 0,
      download_error: s.downloadError ? describe(s.downloadError) : '',
      upload_error: s.uploadError ? describe(s.uploadError) : '',
      priorities: (s.priorityStatusEntries ?? []).map((p) => ({
        priority: p.priority,
        has_synced: p.hasSynced ?? false,
        last_synced_at_ms: p.lastSyncedAt?.getTime() ?? 0
      })),
      streams: (s.syncStreams ?? []).map(({ subscription: d, progress }) => ({
        name: d.name,
        parameters: d.parameters ?? null,
        active: d.active,
        is_default: d.isDefault,
        has_synced: d.hasSynced,
        downloaded: progress?.downloadedOperations ?? 0
      }))
    };
  }
}

// A check reads one query over and over, as an app would that looks at the worst
// moment, and keeps what must not be seen: any row at all.
class Check {
  constructor(db, sql) {
    this.reads = 0;
    this.violations = [];
    this.stopped = false;
    this.done = this.#run(db, sql);
  }

  async #run(db, sql) {
    while (!this.stopped) {
      const rows = await db.getAll(sql);
      this.reads++;
      if (rows.length > 0 && this.violations.length < 5) this.violations.push(JSON.stringify(rows.slice(0, 5)));
      await new Promise((resolve) => setTimeout(resolve, 10)); // leave the machine to the others
    }
  }
}

// keepTarget does what complete(checkpoint) is for: it says which write checkpoint
// the client waits for, once nothing is left to upload. The SDK (common 2.3.0)
// does so only while something is left, and else asks the service for one.
async function keepTarget(db, checkpoint) {
  await db.writeTransaction(async (tx) => {
    const { left } = await tx.get('SELECT count(*) AS left FROM ps_crud');
    if (left > 0) return;
    // As text, for it returns a number that JavaScript cannot hold.
    await tx.execute("SELECT CAST(powersync_control('target_checkpoint_request_id', ?) AS TEXT)", [checkpoint]);
  });
}

function schemaOf(tables) {
  const kinds = { text: column.text, integer: column.integer, real: column.real };
  const out = {};
  for (const [name, columns] of Object.entries(tables)) {
    out[name] = new Table(Object.fromEntries(Object.entries(columns).map(([c, kind]) => [c, kinds[kind]])));
  }
  return new Schema(out);
}

function describe(error) {
  const cause = error?.cause ? `: ${describe(error.cause)}` : '';
  return `${error?.message ?? error}${cause}`;
}

async function withDeadline(ms, what, run) {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(new Error(`${what}: not within ${ms} ms`)), ms);
  try {
    await run(controller.signal);
    if (controller.signal.aborted) throw controller.signal.reason; // the SDK resolves when aborted
  } finally {
    clearTimeout(timer);
  }
}

function find(request) {
  const client = clients.get(request.client);
  if (!client) throw new Error(`no client ${request.client}`);
  return client;
}

const operations = {
  async open(request) {
    if (clients.has(request.client)) throw new Error(`client ${request.client} is open`);
    const client = new Client(request);
    await client.db.waitForReady();
    clients.set(request.client, client);
    return { client_id: await client.db.getClientId(), sdk: client.db.sdkVersion };
  },
  async connect(request) {
    const client = find(request);
    Object.assign(client.options, request.options ?? {});
    client.connect();
  },
  async disconnect(request) {
    await find(request).db.disconnect();
  },
  async set(request) {
    // New endpoint, token or upload_url; the SDK asks for credentials at its next attempt.
    Object.assign(find(request).options, request.options);
  },
  async first_sync(request) {
    const { db } = find(request);
    await withDeadline(request.timeout_ms, 'first sync', (signal) =>
      db.waitForFirstSync({ signal, priority: request.priority ?? undefined })
    );
  },
  async query(request) {
    return await find(request).db.getAll(request.sql, request.args ?? []);
  },
  async raw_query(request) {
    // Rows as arrays, in the order of the columns.
    return await find(request).db.readLock(async (tx) => {
      const { rawRows, columnNames } = await tx.executeRaw(request.sql, request.args ?? []);
      return { columns: columnNames, rows: rawRows };
    });
  },
  async execute(request) {
    // A list of statements is one local transaction, which is one upload.
    const { db } = find(request);
    await db.writeTransaction(async (tx) => {
      for (const [sql, args] of request.statements) await tx.execute(sql, args ?? []);
    });
  },
  async subscribe(request) {
    const client = find(request);
    const subscription = await client.db
      .syncStream(request.stream, request.params ?? undefined)
      .subscribe({ ttl: request.ttl ?? undefined, priority: request.priority ?? undefined });
    client.subscriptions.set(request.as, subscription);
    if (request.timeout_ms) {
      await withDeadline(request.timeout_ms, `stream ${request.stream}`, (signal) =>
        subscription.waitForFirstSync(signal)
      );
    }
  },
  async unsubscribe(request) {
    const client = find(request);
    const subscription = client.subscriptions.get(request.as);
    if (!subscription) throw new Error(`no subscription ${request.as}`);
    client.subscriptions.delete(request.as);
    subscription.unsubscribe();
  },
  async request_checkpoint(request) {
    const checkpoint = await find(request).db.requestCheckpoint();
    await withDeadline(request.timeout_ms, 'checkpoint request', (signal) => checkpoint.waitForSync({ signal }));
  },
  async uploaded(request) {
    const pending = uploads.get(request.upload);
    if (!pending) throw new Error(`no upload ${request.upload}`);
    uploads.delete(request.upload);
    if (request.error) pending.reject(new Error(request.error));
    else pending.resolve(request.checkpoint);
  },
  async watch(request) {
    // Tells of every change of these tables, with the rows of the query.
    const client = find(request);
    client.db.watchWithCallback(
      request.sql,
      request.args ?? [],
      {
        onResult: (result) => emit({ event: 'rows', client: client.name, watch: request.as, rows: result.array }),
        onError: (error) => emit({ event: 'watch_error', client: client.name, watch: request.as, error: describe(error) })
      },
      { throttleMs: request.throttle_ms ?? 5 }
    );
  },
  async check(request) {
    const { db, checks } = find(request);
    if (checks.has(request.as)) throw new Error(`check ${request.as} runs`);
    checks.set(request.as, new Check(db, request.sql));
  },
  async check_stop(request) {
    const { checks } = find(request);
    const check = checks.get(request.as);
    if (!check) throw new Error(`no check ${request.as}`);
    checks.delete(request.as);
    check.stopped = true;
    await check.done;
    return { reads: check.reads, violations: check.violations };
  },
  async status(request) {
    return find(request).status();
  },
  async stats(request) {
    return find(request).tap.report();
  },
  async close(request) {
    const client = find(request);
    clients.delete(request.client);
    await client.db.close();
  }
};

const input = createInterface({ input: process.stdin });
input.on('line', async (line) => {
  let request;
  try {
    request = JSON.parse(line);
    const operation = operations[request.op];
    if (!operation) throw new Error(`unknown op ${request.op}`);
    emit({ id: request.id, ok: true, result: (await operation(request)) ?? null });
  } catch (error) {
    emit({ id: request?.id ?? null, ok: false, error: describe(error) });
  }
});
input.on('close', async () => {
  await Promise.allSettled([...clients.values()].map((c) => c.db.close()));
  process.exit(0);
});
emit({ event: 'ready', node: process.versions.node });
