// Package mongotest is a fake of a MongoDB server for tests: a replica set of one,
// in memory, that the real driver talks to. It was written from the documented wire
// protocol and command reference; no MongoDB server was there to compare it with.
//
// It knows the commands, operators and fields that the store uses. Anything else
// is an error, as is what a server would refuse: documents over 16 MB, messages
// over 48 MB, an _id that is there already, a changed _id. Documents change one by
// one; a cursor is no snapshot: it goes on in what is there when the next batch is
// asked for. Transactions and retryable writes are refused.
//
// A connection can be cut at any command, before it is done or after (Cut).
package mongotest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// Server is a fake server.
type Server struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu          sync.Mutex
	stopped     bool                  // guarded by mu, as all that follows
	conns       map[net.Conn]struct{} //
	collections map[string]*collection
	cursors     map[int64]*cursor
	lastCursor  int64
	cut         func(Command) Cut
}

// Command is one that a client has sent.
type Command struct {
	Name       string
	Collection string // or its other argument, if that is a text
	Body       bson.Raw
}

// Cut says what becomes of a command.
type Cut uint8

const (
	Done    Cut = iota // it is done, and answered
	Before             // the connection is cut before it is done
	After              // the connection is cut when it is done
	Refused            // it is not done, and answered with an error
	Denied             // it is done, and answered with an error
)

// Start starts a server that ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Listen starts a server.
func Listen(address string) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l, conns: map[net.Conn]struct{}{}, collections: map[string]*collection{}, cursors: map[int64]*cursor{}}
	s.wg.Go(s.accept)
	return s, nil
}

// Stop ends all connections.
func (s *Server) Stop() {
	s.listener.Close()
	s.mu.Lock()
	s.stopped = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Address the server listens at.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Config of a connection to the server.
func (s *Server) Config(database string) *config.MongoDB {
	return &config.MongoDB{URI: "mongodb://" + s.Address() + "/?serverSelectionTimeoutMS=5000", Database: database}
}

// Intercept asks cut what becomes of each command from now on; nil = Done. While it
// does not answer, the command is not begun. It is not asked of what the driver
// sends by itself, and may be asked of several at once.
func (s *Server) Intercept(cut func(Command) Cut) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = cut
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.stopped {
			s.mu.Unlock()
			c.Close()
			return
		}
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.wg.Go(func() {
			defer func() {
				c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			}()
			for s.serve(c) == nil {
			}
		})
	}
}

const (
	opReply = 1
	opQuery = 2004 // only for the first hello of a connection
	opMsg   = 2013

	maxMessage  = 48_000_000
	maxDocument = 16 << 20
	maxBatch    = 100_000
)

// maxTime is the server's code MaxTimeMSExpired.
const maxTime = 50

var errCut = errors.New("cut")

// serve answers one message.
func (s *Server) serve(c net.Conn) error {
	var header [16]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return err
	}
	size, id, code := binary.LittleEndian.Uint32(header[:]), binary.LittleEndian.Uint32(header[4:]), binary.LittleEndian.Uint32(header[12:])
	if size < 16 || size > maxMessage {
		return fmt.Errorf("a message of %d bytes", size)
	}
	message := make([]byte, size-16)
	if _, err := io.ReadFull(c, message); err != nil {
		return err
	}
	var prefix []byte
	var reply bson.D
	switch code {
	case opQuery:
		body, err := queryBody(message)
		if err != nil {
			return err
		}
		reply = s.hello(body)
		code = opReply
		prefix = make([]byte, 20) // flags, cursor, from
		prefix[16] = 1            // documents
		prefix[0] = 8             // await capable
	case opMsg:
		command, err := readMessage(message)
		if err != nil {
			return err
		}
		if reply, err = s.run(command); err != nil {
			return err
		}
		prefix = make([]byte, 5) // flags, kind of section
	default:
		return fmt.Errorf("op code %d", code)
	}
	doc, err := bson.Marshal(reply)
	if err != nil {
		return err
	}
	out := binary.LittleEndian.AppendUint32(nil, uint32(16+len(prefix)+len(doc)))
	out = binary.LittleEndian.AppendUint32(out, 0)
	out = binary.LittleEndian.AppendUint32(out, id)
	out = binary.LittleEndian.AppendUint32(out, code)
	out = append(append(out, prefix...), doc...)
	_, err = c.Write(out)
	return err
}

// queryBody is the document of an OP_QUERY.
func queryBody(b []byte) (bson.Raw, error) {
	end := bytes.IndexByte(b[min(4, len(b)):], 0)
	if end < 0 || len(b) < 4+end+1+8 {
		return nil, errors.New("a short query")
	}
	return bson.Raw(b[4+end+1+8:]), bson.Raw(b[4+end+1+8:]).Validate()
}

// command is a message: its body, and the documents that follow it by name.
type command struct {
	Command
	database string
	lists    map[string][]bson.Raw
}

func readMessage(b []byte) (*command, error) {
	if len(b) < 5 {
		return nil, errors.New("a short message")
	}
	const checksum, more = 1, 2
	flags := binary.LittleEndian.Uint32(b)
	if flags&more != 0 {
		return nil, errors.New("a command without an answer")
	}
	if b = b[4:]; flags&checksum != 0 {
		b = b[:len(b)-4]
	}
	c := &command{lists: map[string][]bson.Raw{}}
	document := func() (bson.Raw, error) {
		if len(b) < 5 || binary.LittleEndian.Uint32(b) > uint32(len(b)) {
			return nil, errors.New("a short document")
		}
		doc := bson.Raw(b[:binary.LittleEndian.Uint32(b)])
		b = b[len(doc):]
		return doc, doc.Validate()
	}
	for len(b) > 0 {
		kind := b[0]
		b = b[1:]
		switch kind {
		case 0:
			doc, err := document()
			if err != nil {
				return nil, err
			}
			c.Body = doc
		case 1:
			rest := len(b) - int(binary.LittleEndian.Uint32(b))
			b = b[4:]
			end := bytes.IndexByte(b, 0)
			if rest < 0 || end < 0 {
				return nil, errors.New("a short section")
			}
			name := string(b[:end])
			b = b[end+1:]
			for len(b) > rest {
				doc, err := document()
				if err != nil {
					return nil, err
				}
				c.lists[name] = append(c.lists[name], doc)
			}
		default:
			return nil, fmt.Errorf("a section of kind %d", kind)
		}
	}
	elements, err := c.Body.Elements()
	if err != nil || len(elements) == 0 {
		return nil, errors.New("a message without a command")
	}
	c.Name = elements[0].Key()
	c.Collection, _ = elements[0].Value().StringValueOK()
	c.database, _ = c.Body.Lookup("$db").StringValueOK()
	return c, nil
}

// run does a command, as one at a time.
func (s *Server) run(c *command) (bson.D, error) {
	does, known := commands[c.Name]
	if !known {
		return failure(59, "no such command: "+c.Name), nil
	}
	s.mu.Lock()
	ask := s.cut
	s.mu.Unlock()
	cut := Done
	if ask != nil && !does.own {
		cut = ask(c.Command)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch cut {
	case Before:
		return nil, errCut
	case Refused:
		return failure(maxTime, "operation exceeded time limit"), nil
	}
	reply, err := does.run(s, c)
	switch cut {
	case After:
		return nil, errCut
	case Denied:
		return failure(maxTime, "operation exceeded time limit"), nil
	}
	var f *fault
	if errors.As(err, &f) {
		return failure(f.code, f.message), nil
	}
	if err != nil {
		return failure(9, err.Error()), nil // FailedToParse
	}
	return append(reply, bson.E{Key: "ok", Value: 1.0}), nil
}

// fault is an error with a server's code.
type fault struct {
	code    int32
	message string
}

func (f *fault) Error() string { return f.message }

func failure(code int32, message string) bson.D {
	return bson.D{{Key: "ok", Value: 0.0}, {Key: "errmsg", Value: message}, {Key: "code", Value: code}}
}

func (s *Server) hello(bson.Raw) bson.D {
	return bson.D{
		{Key: "helloOk", Value: true}, {Key: "ismaster", Value: true}, {Key: "isWritablePrimary", Value: true}, {Key: "secondary", Value: false},
		{Key: "setName", Value: "fake"}, {Key: "setVersion", Value: 1}, {Key: "hosts", Value: bson.A{s.Address()}}, {Key: "me", Value: s.Address()}, {Key: "primary", Value: s.Address()},
		{Key: "maxBsonObjectSize", Value: maxDocument}, {Key: "maxMessageSizeBytes", Value: maxMessage}, {Key: "maxWriteBatchSize", Value: maxBatch},
		{Key: "logicalSessionTimeoutMinutes", Value: 30}, {Key: "minWireVersion", Value: 0}, {Key: "maxWireVersion", Value: 21}, {Key: "readOnly", Value: false}, {Key: "ok", Value: 1.0},
	}
}
