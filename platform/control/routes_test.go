package control

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/denia-paas/denia/internal/testdns"
	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/store"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openStore(t testing.TB) *store.Store {
	t.Helper()
	plain := func(text []byte) ([]byte, error) { return text, nil }
	s, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "denia.db"), store.Options{Log: slog.New(slog.DiscardHandler), Seal: plain, Unseal: plain})
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

// node is a Plane on a store that others write to as well. It runs no loops.
type node struct {
	*Plane
	told Names
}

func newNode(t *testing.T, o Options) *node {
	t.Helper()
	n := &node{}
	o.Ingress, o.Log = ingress.New(ingress.Options{}), slog.New(slog.DiscardHandler)
	o.Names = func(names Names) { n.told = names }
	n.Plane = New(o)
	t.Cleanup(o.Ingress.Close)
	check(t, n.rereadRoutes(t.Context()))
	return n
}

// A verified domain is routed before the reply is sent, on whichever node it is
// verified.
func TestADomainOfAServiceMadeElsewhereIsRoutedAtOnce(t *testing.T) {
	s, dns := openStore(t), testdns.Start(t)
	n := newNode(t, Options{Store: s, Domains: DomainOptions{Resolver: dns.Addr}})
	project, err := s.ProjectByName(t.Context(), platform.DefaultProject)
	check(t, err)
	spec := platform.ServiceSpec{Name: "web"}
	service, err := s.CreateService(t.Context(), project.ID, spec.WithDefaults())
	check(t, err)
	d, err := n.AttachDomain(t.Context(), service.ID, "shop.example.com")
	check(t, err)
	dns.TXT(platform.ChallengeDNSName(d.Hostname), d.Token)
	d, err = n.VerifyDomain(t.Context(), service.ID, d.ID)
	check(t, err)
	if d.Status != platform.DomainVerified || !n.Ingress.Has("shop.example.com") || !n.Ingress.Has("web.localhost") {
		t.Errorf("it is %s and not routed, or its service is not", d.Status)
	}
}
