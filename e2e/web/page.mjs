// page.mjs is the app in the browser: one tab with one database of the official
// web SDK. The driver outside calls `tab(op, request)`; the page calls the
// driver's `outside(event)` for what happens by itself.
//
// Everything of the SDK is as an app would use it: the database and the sync
// client run in the SDK's own (shared) workers, served unchanged from the package.

import { PowerSyncDatabase, Schema, Table, column, SyncStreamConnectionMethod, LogLevels } from '@powersync/web';

const WORKER = '/worker/worker.js';
const TRANSPORTS = { http: SyncStreamConnectionMethod.HTTP, websocket: SyncStreamConnectionMethod.WEB_SOCKET };
const KEPT_SAMPLES = 10_000;

let db;
let options;
const subscriptions = new Map();
const checks = new Map();
const counters = { credential_fetches: 0, uploads: 0 };
const checksumFailures = [];
let samples = []; // of the download progress, as an app's status listener sees it

const connector = {
  fetchCredentials: async () => {
    counters.credential_fetches++;
    return options.token == null ? null : { endpoint: options.endpoint, token: options.token };
  },
  uploadData: async (database) => {
    for (let tx = await database.getNextCrudTransaction(); tx; tx = await database.getNextCrudTransaction()) {
      counters.uploads++;
      const crud = tx.crud.map((e) => ({ op: e.op, table: e.table, id: e.id, data: e.opData ?? null }));
      await window.outside({ event: 'upload', client: options.client, crud });
      await tx.complete();
    }
  }
};

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

function progressOf(p) {
  return p && { downloaded: p.downloadedOperations, total: p.totalOperations, fraction: p.downloadedFraction };
}

function streamsOf(status) {
  return (status.syncStreams ?? []).map(({ subscription: d, progress, priority }) => ({
    name: d.name,
    parameters: d.parameters ?? null,
    active: d.active,
    is_default: d.isDefault,
    explicit: d.hasExplicitSubscription,
    expires_at_ms: d.expiresAt?.getTime() ?? 0,
    has_synced: d.hasSynced,
    priority,
    downloaded: progress?.downloadedOperations ?? 0,
    total: progress?.totalOperations ?? 0
  }));
}

function keepSample(status) {
  const progress = progressOf(status.downloadProgress);
  if (!progress || samples.length >= KEPT_SAMPLES) return;
  samples.push({ ...progress, streams: streamsOf(status).filter((s) => s.total > 0) });
}

// A check reads one query over and over, as an app would that looks at the worst
// moment, and keeps what must not be seen: any row at all.
class Check {
  constructor(sql) {
    this.sql = sql;
    this.reads = 0;
    this.violations = [];
    this.stopped = false;
    this.done = this.#run();
  }
  async #run() {
    while (!this.stopped) {
      const rows = await db.getAll(this.sql);
      this.reads++;
      if (rows.length > 0 && this.violations.length < 5) this.violations.push(JSON.stringify(rows.slice(0, 5)));
      await new Promise((resolve) => setTimeout(resolve, 10)); // leave the machine to the others
    }
  }
}

const operations = {
  async open(request) {
    options = request;
    const level = LogLevels[request.log ?? 'warn'];
    db = new PowerSyncDatabase({
      schema: schemaOf(request.schema),
      database: {
        dbFilename: 'app.sqlite',
        worker: WORKER,
        ...(request.vfs ? { vfs: request.vfs } : {}),
        ...(request.single_tab ? { enableMultiTabs: false } : {})
      },
      sync: { worker: WORKER, logLevel: LogLevels.debug },
      logger: {
        log: ({ level: l, message, error }) => {
          const text = `${message}${error ? `: ${describe(error)}` : ''}`;
          if (/checksum/i.test(text) && /fail|mismatch/i.test(text)) checksumFailures.push(text);
          if (l >= level) console.log(text);
        }
      }
    });
    db.registerListener({ statusChanged: keepSample });
    await db.waitForReady();
    return { client_id: await db.getClientId(), sdk: db.sdkVersion };
  },
  async connect(request) {
    Object.assign(options, request.options ?? {});
    // Not awaited: the SDK goes on trying by itself.
    db.connect(connector, {
      connectionMethod: TRANSPORTS[options.transport ?? 'http'],
      retryDelayMs: options.retry_delay_ms ?? 200,
      crudUploadThrottleMs: options.upload_throttle_ms ?? 50,
      params: options.params ?? {},
      appMetadata: options.app_metadata ?? {},
      includeDefaultStreams: options.include_defaults ?? true,
      checkpointMode: options.checkpoint_mode ?? 'legacy'
    }).catch((error) => console.log(`connect: ${describe(error)}`));
  },
  async disconnect() {
    await db.disconnect();
  },
  async sign_out() {
    await db.disconnectAndClear();
  },
  async set(request) {
    Object.assign(options, request.options);
  },
  async first_sync(request) {
    await withDeadline(request.timeout_ms, 'first sync', (signal) =>
      db.waitForFirstSync({ signal, priority: request.priority ?? undefined })
    );
  },
  async query(request) {
    return await db.getAll(request.sql, request.args ?? []);
  },
  async raw_query(request) {
    return await db.readLock(async (tx) => {
      const { rawRows, columnNames } = await tx.executeRaw(request.sql, request.args ?? []);
      return { columns: columnNames, rows: rawRows };
    });
  },
  async execute(request) {
    await db.writeTransaction(async (tx) => {
      for (const [sql, args] of request.statements) await tx.execute(sql, args ?? []);
    });
  },
  async subscribe(request) {
    const subscription = await db
      .syncStream(request.stream, request.params ?? undefined)
      .subscribe({ ttl: request.ttl ?? undefined, priority: request.priority ?? undefined });
    subscriptions.set(request.as, subscription);
    if (request.timeout_ms) {
      await withDeadline(request.timeout_ms, `stream ${request.stream}`, (signal) => subscription.waitForFirstSync(signal));
    }
  },
  async unsubscribe(request) {
    const subscription = subscriptions.get(request.as);
    if (!subscription) throw new Error(`no subscription ${request.as}`);
    subscriptions.delete(request.as);
    subscription.unsubscribe();
  },
  async request_checkpoint(request) {
    const checkpoint = await db.requestCheckpoint();
    await withDeadline(request.timeout_ms, 'checkpoint request', (signal) => checkpoint.waitForSync({ signal }));
  },
  async check(request) {
    if (checks.has(request.as)) throw new Error(`check ${request.as} runs`);
    checks.set(request.as, new Check(request.sql));
  },
  async check_stop(request) {
    const check = checks.get(request.as);
    if (!check) throw new Error(`no check ${request.as}`);
    checks.delete(request.as);
    check.stopped = true;
    await check.done;
    return { reads: check.reads, violations: check.violations };
  },
  // The samples of the download progress since the last call.
  async progress() {
    const seen = samples;
    samples = [];
    return seen;
  },
  async status() {
    const s = db.currentStatus;
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
      streams: streamsOf(s)
    };
  },
  // The sync client runs in a worker, so its lines cannot be counted from here;
  // this is what the database itself remembers of them.
  async stats() {
    const buckets = await db.getAll(
      "SELECT name AS bucket, count_at_last AS count, last_op FROM ps_buckets WHERE name <> '$local' ORDER BY name"
    );
    const local = await db.getOptional("SELECT CAST(last_op AS TEXT) AS last_op FROM ps_buckets WHERE name = '$local'");
    return {
      ...counters,
      buckets,
      write_checkpoint: local && local.last_op !== '0' ? local.last_op : '',
      checksum_failures: checksumFailures,
      out_of_order: []
    };
  }
};

window.tab = async (op, request) => {
  try {
    const operation = operations[op];
    if (!operation) throw new Error(`unknown op ${op}`);
    const result = (await operation(request)) ?? null;
    return { ok: true, result: JSON.parse(JSON.stringify(result, (_, v) => (typeof v === 'bigint' ? v.toString() : v))) };
  } catch (error) {
    return { ok: false, error: describe(error) };
  }
};
