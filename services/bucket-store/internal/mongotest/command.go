package mongotest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// does is what a command does, and the fields that it may have besides those that
// all have. own: the driver sends it by itself.
type does struct {
	own    bool
	fields string
	run    func(*Server, *command) (bson.D, error)
}

var commands map[string]does

func init() {
	commands = map[string]does{
		"hello":           {true, "helloOk topologyVersion maxAwaitTimeMS client compression backpressure loadBalanced", func(s *Server, c *command) (bson.D, error) { h := s.hello(c.Body); return h[:len(h)-1], nil }},
		"ismaster":        {true, "helloOk topologyVersion maxAwaitTimeMS client compression backpressure loadBalanced", func(s *Server, c *command) (bson.D, error) { h := s.hello(c.Body); return h[:len(h)-1], nil }},
		"ping":            {true, "", func(*Server, *command) (bson.D, error) { return nil, nil }},
		"endSessions":     {true, "", func(*Server, *command) (bson.D, error) { return nil, nil }},
		"killCursors":     {true, "cursors", (*Server).killCursors},
		"create":          {false, "", (*Server).create},
		"createIndexes":   {false, "indexes", (*Server).createIndexes},
		"drop":            {false, "", (*Server).drop},
		"dropDatabase":    {false, "", (*Server).dropDatabase},
		"listCollections": {false, "filter nameOnly cursor", (*Server).listCollections},
		"collStats":       {false, "", (*Server).collStats},
		"insert":          {false, "ordered documents", (*Server).insert},
		"update":          {false, "ordered updates", (*Server).update},
		"delete":          {false, "ordered deletes", (*Server).delete},
		"findAndModify":   {false, "query update new upsert", (*Server).findAndModify},
		"find":            {false, "filter sort projection limit batchSize singleBatch", (*Server).find},
		"getMore":         {false, "collection batchSize", (*Server).getMore},
	}
	for name, d := range commands {
		run := d.run
		d.run = func(s *Server, c *command) (bson.D, error) {
			if err := c.only(d.fields); err != nil {
				return nil, err
			}
			return run(s, c)
		}
		commands[name] = d
	}
}

// only fails if the command has other fields.
func (c *command) only(fields string) error {
	elements, err := c.Body.Elements()
	if err != nil {
		return err
	}
	allowed := append(strings.Fields(fields), "$db", "lsid", "readConcern", "writeConcern", "maxTimeMS", "$readPreference", "comment")
	for _, e := range elements[1:] {
		if !slices.Contains(allowed, e.Key()) {
			return fmt.Errorf("the fake knows no field %s of %s", e.Key(), c.Name)
		}
	}
	return nil
}

func fields(doc bson.Raw, allowed string) error {
	elements, err := doc.Elements()
	if err != nil {
		return err
	}
	for _, e := range elements {
		if !slices.Contains(strings.Fields(allowed), e.Key()) {
			return fmt.Errorf("the fake knows no field %s", e.Key())
		}
	}
	return nil
}

func (c *command) name() string { return c.database + "." + c.Collection }

// document is a field that is a document, empty if it is missing.
func (c *command) document(field string) bson.Raw {
	if v, err := c.Body.LookupErr(field); err == nil && v.Type == bson.TypeEmbeddedDocument {
		return v.Document()
	}
	return bson.Raw{5, 0, 0, 0, 0}
}

func (c *command) number(field string) int {
	if v, err := c.Body.LookupErr(field); err == nil {
		return int(v.AsInt64())
	}
	return 0
}

func (c *command) is(field string) bool {
	v, err := c.Body.LookupErr(field)
	return err == nil && v.Type == bson.TypeBoolean && v.Boolean()
}

// list is a field that is a list of documents, in the body or after it.
func (c *command) list(field string) ([]bson.Raw, error) {
	list := c.lists[field]
	if v, err := c.Body.LookupErr(field); err == nil {
		values, err := v.Array().Values()
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			list = append(list, v.Document())
		}
	}
	if len(list) == 0 || len(list) > maxBatch {
		return nil, &fault{16, fmt.Sprintf("%d documents in a batch", len(list))} // InvalidLength
	}
	return list, nil
}

// collection is the one of the command; it is made if make is set.
func (s *Server) collection(c *command, make bool) *collection {
	is := s.collections[c.name()]
	if is == nil {
		is = &collection{docs: map[string]bson.Raw{}, indexes: map[string]*index{}}
		if make {
			s.collections[c.name()] = is
		}
	}
	return is
}

func (s *Server) create(c *command) (bson.D, error) {
	if s.collections[c.name()] != nil {
		return nil, &fault{48, "the collection exists"} // NamespaceExists
	}
	s.collection(c, true)
	return nil, nil
}

func (s *Server) createIndexes(c *command) (bson.D, error) {
	list, err := c.list("indexes")
	for _, i := range list {
		if err == nil {
			err = fields(i, "key name")
		}
	}
	s.collection(c, true)
	return nil, err
}

func (s *Server) drop(c *command) (bson.D, error) {
	if s.collections[c.name()] == nil {
		return nil, &fault{26, "ns not found"} // NamespaceNotFound
	}
	delete(s.collections, c.name())
	return nil, nil
}

func (s *Server) dropDatabase(c *command) (bson.D, error) {
	for name := range s.collections {
		if strings.HasPrefix(name, c.database+".") {
			delete(s.collections, name)
		}
	}
	return nil, nil
}

func (s *Server) listCollections(c *command) (bson.D, error) {
	if e, err := c.document("filter").Elements(); err != nil || len(e) > 0 {
		return nil, errors.New("the fake lists all collections")
	}
	list := bson.A{}
	for name := range s.collections {
		if of, ok := strings.CutPrefix(name, c.database+"."); ok {
			list = append(list, bson.D{{Key: "name", Value: of}, {Key: "type", Value: "collection"}})
		}
	}
	return bson.D{{Key: "cursor", Value: bson.D{{Key: "id", Value: int64(0)}, {Key: "ns", Value: c.database + ".$cmd.listCollections"}, {Key: "firstBatch", Value: list}}}}, nil
}

func (s *Server) collStats(c *command) (bson.D, error) {
	size := 0
	for _, d := range s.collection(c, false).docs {
		size += len(d)
	}
	return bson.D{{Key: "storageSize", Value: size}, {Key: "totalIndexSize", Value: 0}}, nil
}

// each does the documents of a batch; errors are of their indexes.
func (c *command) each(list []bson.Raw, do func(doc bson.Raw) error) bson.A {
	errs := bson.A{}
	ordered, err := c.Body.LookupErr("ordered")
	stop := err != nil || ordered.Boolean()
	for i, doc := range list {
		if err := do(doc); err != nil {
			code := int32(9)
			var f *fault
			if errors.As(err, &f) {
				code = f.code
			}
			errs = append(errs, bson.D{{Key: "index", Value: i}, {Key: "code", Value: code}, {Key: "errmsg", Value: err.Error()}})
			if stop {
				break
			}
		}
	}
	return errs
}

func written(n int, errs bson.A, more ...bson.E) bson.D {
	reply := append(bson.D{{Key: "n", Value: n}}, more...)
	if len(errs) > 0 {
		reply = append(reply, bson.E{Key: "writeErrors", Value: errs})
	}
	return reply
}

func (s *Server) insert(c *command) (bson.D, error) {
	list, err := c.list("documents")
	if err != nil {
		return nil, err
	}
	to := s.collection(c, true)
	errs := c.each(list, to.insert)
	return written(len(list)-len(errs), errs), nil
}

func (s *Server) update(c *command) (bson.D, error) {
	list, err := c.list("updates")
	if err != nil {
		return nil, err
	}
	to := s.collection(c, true)
	n := 0
	upserted := bson.A{}
	i := -1
	errs := c.each(list, func(u bson.Raw) error {
		i++
		if err := fields(u, "q u upsert multi"); err != nil {
			return err
		}
		change, ok := u.Lookup("u").DocumentOK()
		if !ok {
			return errors.New("the fake updates by no pipeline")
		}
		filter := u.Lookup("q").Document()
		if v, err := u.LookupErr("multi"); err == nil && v.Boolean() {
			changed, err := to.changeAll(filter, change)
			n += changed
			return err
		}
		key, err := to.first(filter)
		if err != nil {
			return err
		}
		if key != "" {
			n++
			return to.change(key, change)
		}
		if v, err := u.LookupErr("upsert"); err != nil || !v.Boolean() {
			return nil
		}
		// Only a replacement by its _id.
		id := filter.Lookup("_id")
		if e, err := filter.Elements(); err != nil || len(e) != 1 || id.IsZero() || strings.HasPrefix(change.Index(0).Key(), "$") {
			return errors.New("the fake makes no document of such an update")
		}
		n++
		upserted = append(upserted, bson.D{{Key: "index", Value: i}, {Key: "_id", Value: id}})
		return to.insert(change)
	})
	more := []bson.E{{Key: "nModified", Value: n - len(upserted)}}
	if len(upserted) > 0 {
		more = append(more, bson.E{Key: "upserted", Value: upserted})
	}
	return written(n, errs, more...), nil
}

func (s *Server) delete(c *command) (bson.D, error) {
	list, err := c.list("deletes")
	if err != nil {
		return nil, err
	}
	from := s.collection(c, false)
	n := 0
	errs := c.each(list, func(d bson.Raw) error {
		if err := fields(d, "q limit"); err != nil {
			return err
		}
		filter := d.Lookup("q").Document()
		keys, err := from.candidates(filter)
		if err != nil {
			return err
		}
		for _, k := range slices.Clone(keys) {
			doc := from.docs[k]
			if doc == nil {
				continue
			}
			ok, err := selected(doc, filter)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			from.remove(k)
			n++
			if d.Lookup("limit").AsInt64() == 1 {
				break
			}
		}
		return nil
	})
	return written(n, errs), nil
}

func (s *Server) findAndModify(c *command) (bson.D, error) {
	if c.is("upsert") || !c.is("new") {
		return nil, errors.New("the fake only changes what is there, and returns it then")
	}
	in := s.collection(c, false)
	key, err := in.first(c.document("query"))
	if err != nil {
		return nil, err
	}
	if key == "" {
		return bson.D{{Key: "lastErrorObject", Value: bson.D{{Key: "n", Value: 0}, {Key: "updatedExisting", Value: false}}}, {Key: "value", Value: nil}}, nil
	}
	if err := in.change(key, c.document("update")); err != nil {
		return nil, err
	}
	return bson.D{{Key: "lastErrorObject", Value: bson.D{{Key: "n", Value: 1}, {Key: "updatedExisting", Value: true}}}, {Key: "value", Value: in.docs[key]}}, nil
}
