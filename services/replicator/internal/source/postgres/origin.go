package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

const undefinedFile = "58P01"

// origin is a cluster and a timeline of it: where an LSN has its meaning.
type origin struct {
	system   string // system identifier, made by initdb
	timeline uint32 // grows at each promotion and each recovery to a point in time
}

// String is the form that is stored.
func (o origin) String() string { return o.system + ":" + strconv.FormatUint(uint64(o.timeline), 10) }

func parseOrigin(text string) (origin, error) {
	system, timeline, ok := strings.Cut(text, ":")
	n, err := strconv.ParseUint(timeline, 10, 32)
	if !ok || err != nil {
		return origin{}, fmt.Errorf("%q is no origin of Postgres", text)
	}
	return origin{system, uint32(n)}, nil
}

// identify asks the server which cluster and timeline it is.
func identify(ctx context.Context, conn *pgconn.PgConn) (origin, error) {
	row, err := command(ctx, conn, "IDENTIFY_SYSTEM", 2)
	if err != nil {
		return origin{}, err
	}
	return parseOrigin(string(row[0]) + ":" + string(row[1]))
}

// command runs a command of the replication protocol whose answer is one row of
// at least so many columns.
func command(ctx context.Context, conn *pgconn.PgConn, text string, columns int) ([][]byte, error) {
	results, err := conn.Exec(ctx, text).ReadAll()
	name, _, _ := strings.Cut(text, " ")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) < columns {
		return nil, errs.New(errs.S1101, "unexpected answer to %s", name)
	}
	return results[0].Rows[0], nil
}

// sameHistory returns what the server is, if what is stored of the stream is of
// the server's history; the error is ErrOtherHistory if it is not. current is the
// log's end. A server that was put back to an earlier state and has written
// beyond the stored position since is known by its timeline, unless its files
// were put back without a recovery to a point in time: that leaves no trace.
func (s *Source) sameHistory(ctx context.Context, head *model.StreamHead, current lsn) (origin, error) {
	conn, err := s.replicationConn(ctx)
	if err != nil {
		return origin{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	now, err := identify(ctx, conn)
	if err != nil {
		return origin{}, err
	}
	if head.Applied.Position == "" {
		// Nothing is stored of the log; but what is stored of those before it may be
		// of another history.
		if head.Origin != "" && head.Origin != now.String() {
			return origin{}, otherHistory("it is %s, what is stored is of %s (system identifier and timeline)", now, head.Origin)
		}
		return now, nil
	}
	applied, err := parseLSN(string(head.Applied.Position))
	if err != nil {
		return origin{}, err
	}
	if head.Origin != "" { // stored by a version that knew of it
		was, err := parseOrigin(head.Origin)
		if err != nil {
			return origin{}, err
		}
		if was.system != now.system {
			return origin{}, otherHistory("it is another database cluster: its system identifier is %s, that of what is stored is %s", now.system, was.system)
		}
		if was.timeline != now.timeline {
			left, err := leftAt(ctx, conn, was.timeline, now.timeline)
			switch {
			case err != nil:
				return origin{}, err
			case left == 0:
				return origin{}, otherHistory("it is on timeline %d, which does not come from timeline %d, of which what is stored is", now.timeline, was.timeline)
			case applied > left || applied == left && !head.Applied.AtTransactionEnd():
				return origin{}, otherHistory("its timeline %d left timeline %d at %s, before %s, which is stored: it was recovered to an earlier point, or a standby took over that was behind",
					now.timeline, was.timeline, left, applied)
			}
			s.log.Info("the source is on a new timeline, which has everything that is stored", "timeline", now.timeline, "was", was.timeline, "left_at", left.String(), "position", applied.String())
		}
	}
	if applied > current {
		return origin{}, otherHistory("its log ends at %s, before %s, which is stored: it was restored from an earlier state", current, applied)
	}
	return now, nil
}

func otherHistory(format string, args ...any) error {
	return errs.Wrap(errs.S1146, source.ErrOtherHistory, "the source has another history than what is stored: "+format, args...)
}

// leftAt is where the history of timeline now left timeline was; 0 if it never
// was on it.
func leftAt(ctx context.Context, conn *pgconn.PgConn, was, now uint32) (lsn, error) {
	if now < was {
		return 0, nil
	}
	row, err := command(ctx, conn, fmt.Sprintf("TIMELINE_HISTORY %d", now), 2)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == undefinedFile {
		return 0, nil // the server does not know where it comes from
	}
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(row[1])) {
		// "1\t0/3000148\treason", oldest first; # begins a comment.
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if fields[0] == strconv.FormatUint(uint64(was), 10) {
			return parseLSN(fields[1])
		}
	}
	return 0, nil
}
