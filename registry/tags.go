package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// maxTagsListed is how many tags one answer lists.
const maxTagsListed = 10_000

// listTags answers GET tags/list (distribution-spec, "Listing Tags"), in the
// order of the tags' bytes.
func (c *call) listTags(string) {
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		c.fail(http.StatusBadRequest, codeUnsupported, "the query cannot be read", nil)
		return
	}
	n := maxTagsListed
	if query.Has("n") {
		wanted, err := strconv.ParseUint(query.Get("n"), 10, 31)
		if err != nil {
			c.fail(http.StatusBadRequest, codeUnsupported, "n is how many tags are wanted: a number from 0", nil)
			return
		}
		n = min(n, int(wanted))
	}
	// One more tells whether there is another page.
	tags, known, err := c.cfg.Metadata.Tags(c.r.Context(), c.grant.Repo, query.Get("last"), n+1)
	if err != nil {
		c.failed(fmt.Errorf("listing the tags of %s: %w", c.name, err))
		return
	}
	if !known {
		c.fail(http.StatusNotFound, codeNameUnknown, "nothing was pushed to "+c.name+" yet", map[string]string{"name": c.name})
		return
	}
	if len(tags) > n {
		tags = tags[:n]
		if n > 0 {
			c.link("/tags/list", url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}})
		}
	}
	if tags == nil {
		tags = []string{}
	}
	answer, err := json.Marshal(struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{c.name, tags})
	if err != nil {
		c.failed(err)
		return
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(answer)))
	c.w.WriteHeader(http.StatusOK)
	c.w.Write(answer)
}

// link tells where the next page is: by path, since what stands before the
// path is known better to whoever is between here and the client.
func (c *call) link(rest string, query url.Values) {
	c.w.Header().Set("Link", "</v2/"+c.name+rest+"?"+query.Encode()+`>; rel="next"`)
}
