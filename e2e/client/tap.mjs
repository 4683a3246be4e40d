// tap.mjs counts what the sync service sends to one database.
//
// Both transports hand every line to the core extension through one SQL call,
// `powersync_control(op, payload)`, inside a write transaction of the database
// adapter. Listening there needs no knowledge of the transport and sees exactly
// what the client has taken, not what was on the wire.

import { deserialize } from 'bson';

const CONTROL = /powersync_control\(/;
const KEPT_LINES = 12;

export class Tap {
  constructor() {
    this.connects = 0; // streams that were opened (one request each)
    this.resumedBuckets = []; // buckets of the last request: [{name, after}]
    this.lines = {}; // line kind -> number
    this.ops = { PUT: 0, REMOVE: 0, MOVE: 0, CLEAR: 0 };
    this.opsTotal = 0;
    this.checksumFailures = [];
    this.bytes = 0;
    this.lastOpId = null; // of the last checkpoint_complete
    this.lastComplete = 0; // time of it, epoch ms
    this.writeCheckpoint = null;
    this.bucketsNow = new Map(); // bucket -> {count, checksum, priority}
    this.recent = []; // the last lines, shortened: what a failed test prints
    this.outOfOrder = []; // ops that did not come in increasing order in a bucket
    this.positions = new Map();
  }

  attach(adapter) {
    const write = adapter.writeTransaction.bind(adapter);
    adapter.writeTransaction = (callback, options) => write((tx) => callback(this.#wrap(tx)), options);
  }

  #wrap(tx) {
    const tap = this;
    return new Proxy(tx, {
      get(target, name) {
        const value = Reflect.get(target, name, target);
        if (name !== 'executeRaw') return typeof value === 'function' ? value.bind(target) : value;
        return async (sql, params) => {
          const result = await target.executeRaw(sql, params);
          if (CONTROL.test(sql) && params?.length === 2) {
            tap.#control(params[0], params[1], result.rawRows?.[0]?.[0]);
          }
          return result;
        };
      }
    });
  }

  #control(command, payload, response) {
    if (command === 'line_text') {
      this.bytes += payload.length;
      this.#line(JSON.parse(payload));
    } else if (command === 'line_binary') {
      this.bytes += payload.byteLength;
      this.#line(deserialize(payload, { promoteLongs: false, useBigInt64: false }));
    }
    if (typeof response !== 'string' || response[0] !== '[') return;
    for (const instruction of JSON.parse(response)) {
      if (instruction.EstablishSyncStream) {
        this.connects++;
        this.resumedBuckets = instruction.EstablishSyncStream.request.buckets ?? [];
        this.positions = new Map(this.resumedBuckets.map((b) => [b.name, BigInt(b.after)]));
      }
      if (instruction.LogLine && /checksum/i.test(instruction.LogLine.line)) {
        this.checksumFailures.push(instruction.LogLine.line);
      }
    }
  }

  #line(line) {
    const kind = Object.keys(line)[0];
    this.lines[kind] = (this.lines[kind] ?? 0) + 1;
    const body = line[kind];
    this.recent.push(brief(kind, body));
    if (this.recent.length > KEPT_LINES) this.recent.shift();
    switch (kind) {
      case 'checkpoint':
        this.bucketsNow = new Map(body.buckets.map((b) => [b.bucket, about(b)]));
        // The client drops a bucket that it resumed and that is gone; it may come anew.
        for (const name of this.positions.keys()) if (!this.bucketsNow.has(name)) this.positions.delete(name);
        this.writeCheckpoint = body.write_checkpoint ?? null;
        break;
      case 'checkpoint_diff':
        for (const name of body.removed_buckets) {
          this.bucketsNow.delete(name);
          this.positions.delete(name);
        }
        for (const b of body.updated_buckets) this.bucketsNow.set(b.bucket, about(b));
        this.writeCheckpoint = body.write_checkpoint ?? null;
        break;
      case 'data': {
        this.opsTotal += body.data.length;
        let last = this.positions.get(body.bucket) ?? 0n;
        for (const op of body.data) {
          this.ops[op.op] = (this.ops[op.op] ?? 0) + 1;
          const id = BigInt(op.op_id);
          if (id <= last) this.outOfOrder.push(`${body.bucket}: op ${id} after ${last}`);
          last = id;
        }
        this.positions.set(body.bucket, last);
        break;
      }
      case 'checkpoint_complete':
        this.lastOpId = body.last_op_id;
        this.lastComplete = Date.now();
        break;
    }
  }

  report() {
    return {
      connects: this.connects,
      resumed_buckets: this.resumedBuckets,
      lines: this.lines,
      ops: this.ops,
      ops_total: this.opsTotal,
      bytes: this.bytes,
      last_op_id: this.lastOpId,
      last_complete_ms: this.lastComplete,
      write_checkpoint: this.writeCheckpoint,
      buckets: [...this.bucketsNow].map(([bucket, b]) => ({ bucket, ...b })),
      checksum_failures: this.checksumFailures,
      out_of_order: this.outOfOrder,
      recent: this.recent
    };
  }
}

function about(b) {
  return { count: b.count, checksum: Number(b.checksum) >>> 0, priority: b.priority ?? 3 };
}

function brief(kind, body) {
  if (kind === 'data') {
    const ops = body.data;
    return `data ${body.bucket} after ${body.after}: ${ops.length} ops ${ops[0]?.op_id ?? ''}..${ops.at(-1)?.op_id ?? ''}`;
  }
  const text = JSON.stringify({ [kind]: body });
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}
