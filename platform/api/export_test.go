package api

// Row is a row of the route table, for tests that walk it.
type Row struct {
	Method, Path, Least string
	Scope               string
	Status              int
	Stream              bool
}

var scopeNames = map[scope]string{
	nowhere: "nowhere", collection: "collection", anywhere: "anywhere", inBody: "body",
	ofProject: "project", ofService: "service", ofDeployment: "deployment",
}

// Table returns the route table.
func Table() []Row {
	var rows []Row
	for _, rt := range routes() {
		rows = append(rows, Row{rt.method, rt.path, rt.least.String(), scopeNames[rt.scope], max(rt.status, 200), rt.plain != nil})
	}
	return rows
}

// BucketsKept is the bound on a limiter's memory.
const BucketsKept = keptBuckets

// Buckets tells how many a limiter made for the test holds after n keys.
func Buckets(n int) int {
	l := newLimiter(1, 1)
	c := &call{header: map[string][]string{}}
	for i := range n {
		_ = l.charge(c, string(rune(i)))
	}
	return len(l.byKey)
}
