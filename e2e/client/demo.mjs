// demo.mjs is the client of `make demo`: one database of the official SDK that
// prints each change of its tables as it arrives.
//
//   demo.mjs ENDPOINT TOKEN DATABASE_FILE
//
// It prints "ready" on a line of its own when it holds the first checkpoint, and
// ends on SIGTERM, SIGINT or the end of its input.

import { PowerSyncDatabase, Schema, Table, column, SyncStreamConnectionMethod, LogLevels } from '@powersync/node';

const [endpoint, token, dbFilename] = process.argv.slice(2);
const schema = new Schema({
  demo_lists: new Table({ name: column.text, owner: column.text, at: column.text }),
  demo_todos: new Table({ list_id: column.text, body: column.text, done: column.integer, at: column.text })
});
const db = new PowerSyncDatabase({
  schema,
  database: { dbFilename, implementation: { type: 'node:sqlite' }, readWorkerCount: 1 },
  logger: {
    log: ({ level, message, error }) => {
      if (level >= LogLevels.error) process.stderr.write(`client: ${message}${error ? `: ${error.message}` : ''}\n`);
    }
  }
});

const WIDTHS = [12, 8, 6, 36, 24];
function line(...cells) {
  console.log('  ' + cells.map((c, i) => String(c).slice(0, WIDTHS[i]).padEnd(WIDTHS[i])).join(' '));
}

// Tables are compared with what they were: the SDK tells that a table changed, not how.
const held = { demo_lists: new Map(), demo_todos: new Map() };
const shown = {
  demo_lists: (r) => `${r.name} (${r.owner})`,
  demo_todos: (r) => `${r.done ? '[x]' : '[ ]'} ${r.body}`
};
let live = false;

function compare(table, rows) {
  const now = new Map(rows.map((r) => [r.id, r]));
  const before = held[table];
  held[table] = now;
  if (!live) return;
  const time = new Date().toISOString().slice(11, 23);
  for (const [id, row] of now) {
    const old = before.get(id);
    if (old && JSON.stringify(old) === JSON.stringify(row)) continue;
    line(time, old ? 'UPDATE' : 'INSERT', table.slice(5), shown[table](row), delay(row.at));
  }
  for (const [id, row] of before) {
    if (!now.has(id)) line(time, 'REMOVE', table.slice(5), shown[table](row), '');
  }
}

// delay tells how long ago the source wrote the row, by the row's own clock; an
// older row has come into sight because another row has changed.
function delay(at) {
  const ms = Date.now() - Date.parse(at);
  return ms < 1500 ? `${ms} ms after the write` : 'now in sight';
}

async function stop() {
  await db.close();
  process.exit(0);
}
process.on('SIGTERM', stop);
process.on('SIGINT', stop);

const started = Date.now();
db.connect(
  { fetchCredentials: async () => ({ endpoint, token }), uploadData: async () => {} },
  { connectionMethod: SyncStreamConnectionMethod.HTTP, retryDelayMs: 200 }
);
await db.waitForFirstSync();
for (const table of Object.keys(held)) {
  db.watchWithCallback(`SELECT * FROM ${table}`, [], { onResult: (result) => compare(table, result.array) }, { throttleMs: 1 });
  compare(table, await db.getAll(`SELECT * FROM ${table}`));
}
live = true;
console.log(`  The client holds ${held.demo_lists.size} lists and ${held.demo_todos.size} todos, ${Date.now() - started} ms after it was started.\n`);
line('TIME', 'CHANGE', 'TABLE', 'ROW', 'ARRIVED');
console.log('ready');
