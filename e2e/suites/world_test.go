package suites

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/e2e/harness"
)

// soon is how long a client may take to hold a change of a healthy instance,
// on a loaded machine with the race detector.
const soon = 30 * time.Second

const sourceSchema = `
CREATE TABLE lists (id text PRIMARY KEY, owner_id text NOT NULL, name text, n int NOT NULL DEFAULT 0);
CREATE TABLE todos (id text PRIMARY KEY, list_id text NOT NULL, body text, done bool NOT NULL DEFAULT false);
CREATE TABLE members (id bigserial PRIMARY KEY, list_id text NOT NULL, user_id text NOT NULL);
CREATE TABLE announcements (id text PRIMARY KEY, body text);
CREATE TABLE counters (id text PRIMARY KEY, owner_id text NOT NULL, n int NOT NULL DEFAULT 0);
CREATE TABLE accounts (id text PRIMARY KEY, owner_id text NOT NULL, balance int NOT NULL);
CREATE TABLE unrelated (id text PRIMARY KEY, x text);
CREATE PUBLICATION powersync FOR ALL TABLES;
`

const syncConfig = `
bucket_definitions:
  announcements:
    data:
      - SELECT * FROM announcements
  own:
    parameters: SELECT request.user_id() AS user_id
    data:
      - SELECT * FROM lists WHERE owner_id = bucket.user_id
  counters:
    parameters: SELECT request.user_id() AS user_id
    data:
      - SELECT * FROM counters WHERE owner_id = bucket.user_id
  shared:
    parameters: SELECT list_id FROM members WHERE user_id = request.user_id()
    data:
      - SELECT * FROM todos WHERE list_id = bucket.list_id
  bank:
    parameters: SELECT request.user_id() AS user_id
    data:
      - SELECT id, balance FROM accounts WHERE owner_id = bucket.user_id
`

var clientSchema = map[string]map[string]string{
	"lists":         {"owner_id": "text", "name": "text", "n": "integer"},
	"todos":         {"list_id": "text", "body": "text", "done": "integer"},
	"announcements": {"body": "text"},
	"counters":      {"owner_id": "text", "n": "integer"},
	"accounts":      {"balance": "integer"},
}

// world is what the subtests share.
type world struct {
	pg     *harness.Postgres
	sluice *harness.Instance
	driver *harness.Driver
	users  int
}

func newWorld(t *testing.T, mode harness.Mode, seed string, more ...func(*harness.Options)) *world {
	t.Helper()
	dir := harness.NeedsServers(t)
	w := &world{pg: harness.StartPostgres(t, dir)}
	w.pg.Exec(sourceSchema + seed)
	o := harness.Options{Mode: mode, SyncConfig: syncConfig}
	for _, m := range more {
		m(&o)
	}
	w.sluice = harness.StartInstance(t, dir, w.pg, o)
	w.driver = harness.StartDriver(t, dir)
	return w
}

func storage(kind string) func(*harness.Options) {
	return func(o *harness.Options) { o.Storage = kind }
}

// run runs a subtest that the shared parts report to.
func (w *world) run(t *testing.T, name string, test func(*testing.T)) bool {
	return t.Run(name, func(t *testing.T) {
		w.pg.Use(t)
		w.sluice.Use(t)
		w.driver.Use(t)
		test(t)
	})
}

// user returns an id that no other subtest uses.
func (w *world) user() string {
	w.users++
	return fmt.Sprintf("u%d", w.users)
}

type with func(*harness.ClientOptions)

func transport(name string) with {
	return func(o *harness.ClientOptions) { o.Transport = name }
}

// client opens a database for user and connects it. Its uploads go to the source.
func (w *world) client(t *testing.T, user string, more ...with) *harness.Client {
	t.Helper()
	w.users++
	o := harness.ClientOptions{
		Name: fmt.Sprintf("%s-%d", user, w.users), Endpoint: w.sluice.URL(), Schema: clientSchema,
		Token:  harness.Token(t, user, time.Hour, nil),
		Upload: func(crud []harness.Crud) error { return w.upload(t, crud) },
	}
	for _, m := range more {
		m(&o)
	}
	c := w.driver.Open(o)
	c.Connect()
	return c
}

// upload is the app's backend: one local transaction becomes one of the source.
func (w *world) upload(t *testing.T, crud []harness.Crud) error {
	return w.uploadWith(t, crud, func(context.Context, pgx.Tx) error { return nil })
}

// uploadWith is upload, with something more in the transaction.
func (w *world) uploadWith(t *testing.T, crud []harness.Crud, more func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, w.pg.URL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, c := range crud {
			if c.Table != "lists" {
				return fmt.Errorf("the backend knows no table %s", c.Table)
			}
			var err error
			switch c.Op {
			case "PUT":
				_, err = tx.Exec(ctx, "INSERT INTO lists(id, owner_id, name, n) VALUES ($1, $2, $3 || ' (from the source)', coalesce($4::int, 0))",
					c.ID, c.Data["owner_id"], c.Data["name"], c.Data["n"])
			case "PATCH":
				_, err = tx.Exec(ctx, "UPDATE lists SET name = coalesce($2 || ' (from the source)', name) WHERE id = $1", c.ID, c.Data["name"])
			case "DELETE":
				_, err = tx.Exec(ctx, "DELETE FROM lists WHERE id = $1", c.ID)
			}
			if err != nil {
				return err
			}
		}
		return more(ctx, tx)
	})
}

// lists, todos, … say that a client's table equals what its user may see.
func lists(c *harness.Client, user string) harness.Same {
	return harness.Same{
		Client: c,
		Local:  "SELECT id, owner_id, name, n FROM lists ORDER BY id",
		Source: fmt.Sprintf(`SELECT id, owner_id, name, n FROM lists WHERE owner_id = '%s' ORDER BY id COLLATE "C"`, user),
	}
}

func todos(c *harness.Client, user string) harness.Same {
	return harness.Same{
		Client: c,
		Local:  "SELECT id, list_id, body, done FROM todos ORDER BY id",
		Source: fmt.Sprintf(`SELECT id, list_id, body, done::int FROM todos
			WHERE list_id IN (SELECT list_id FROM members WHERE user_id = '%s') ORDER BY id COLLATE "C"`, user),
	}
}

func announcements(c *harness.Client) harness.Same {
	return harness.Same{
		Client: c,
		Local:  "SELECT id, body FROM announcements ORDER BY id",
		Source: `SELECT id, body FROM announcements ORDER BY id COLLATE "C"`,
	}
}

func counters(c *harness.Client, user string) harness.Same {
	return harness.Same{
		Client: c,
		Local:  "SELECT id, owner_id, n FROM counters ORDER BY id",
		Source: fmt.Sprintf(`SELECT id, owner_id, n FROM counters WHERE owner_id = '%s' ORDER BY id COLLATE "C"`, user),
	}
}

func accounts(c *harness.Client, user string) harness.Same {
	return harness.Same{
		Client: c,
		Local:  "SELECT id, balance FROM accounts ORDER BY id",
		Source: fmt.Sprintf(`SELECT id, balance FROM accounts WHERE owner_id = '%s' ORDER BY id COLLATE "C"`, user),
	}
}

// bucketOf returns the client's bucket of a definition; there must be one.
func bucketOf(t *testing.T, c *harness.Client, definition string) harness.Bucket {
	t.Helper()
	var found []harness.Bucket
	for _, b := range c.Stats().Buckets {
		if name := b.Bucket[strings.Index(b.Bucket, "#")+1:]; strings.HasPrefix(name, definition+"[") {
			found = append(found, b)
		}
	}
	if len(found) != 1 {
		t.Fatalf("client %s has %d buckets of %s: %v", c.ID, len(found), definition, found)
	}
	return found[0]
}
