package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/denia-paas/denia/internal/testdns"
)

// authority is a certificate authority: Pebble, and the DNS that it and Denia
// ask. Between it and its clients stands a proxy that counts orders, and can be
// told to be down.
type authority struct {
	t         testing.TB
	dir       string
	http, tls int // where it validates: Denia's ports
	port      int
	admin     int // Pebble's
	dns       *testdns.Server
	proxy     *httptest.Server
	responder *httptest.Server // of OCSP
	lifetime  int              // seconds

	orders  atomic.Int64
	mode    atomic.Value // "", "down", "limited"
	revoked sync.Map     // serial numbers
}

func newAuthority(t testing.TB, lifetime time.Duration) *authority {
	t.Helper()
	a := &authority{
		t: t, dir: t.TempDir(), lifetime: int(lifetime / time.Second), dns: testdns.Start(t),
		http: freePort(t), tls: freePort(t), port: freePort(t), admin: freePort(t),
	}
	a.mode.Store("")
	a.responder = httptest.NewServer(http.HandlerFunc(a.status))
	t.Cleanup(a.responder.Close)
	a.startProxy()
	a.start()
	return a
}

func (a *authority) await(address string) {
	a.t.Helper()
	var failed error
	listens := func() bool {
		conn, err := net.Dial("tcp", address)
		if failed = err; err != nil {
			return false
		}
		_ = conn.Close()
		return true
	}
	if !poll(a.t.Context(), soon, 20*time.Second, listens) {
		a.t.Fatalf("nothing listens on %s: %v", address, failed)
	}
}

// start runs Pebble until the test ends.
func (a *authority) start() {
	a.t.Helper()
	config := object{"pebble": object{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", a.port), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", a.admin),
		"certificate": filepath.Join(a.dir, "cert.pem"), "privateKey": filepath.Join(a.dir, "key.pem"),
		"httpPort": a.http, "tlsPort": a.tls, "ocspResponderURL": a.responder.URL, "keyAlgorithm": "rsa",
		"domainBlocklist": []string{"blocked.example"}, "retryAfter": object{"authz": 1, "order": 1},
		"profiles": object{"default": object{"description": "the only one", "validityPeriod": a.lifetime}},
	}}
	text, err := json.Marshal(config)
	if err != nil {
		a.t.Fatal(err)
	}
	path := filepath.Join(a.dir, "pebble.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		a.t.Fatal(err)
	}
	cmd := exec.Command(tool(a.t, "pebble"), "-config", path, "-dnsserver", a.dns.Addr)
	log := &logBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0", "PEBBLE_AUTHZREUSE=0")
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if a.t.Failed() {
			a.t.Logf("Pebble:\n%s", tail(log.String(), 4000))
		}
	})
	a.await(fmt.Sprintf("127.0.0.1:%d", a.port))
	a.await(fmt.Sprintf("127.0.0.1:%d", a.admin))
}

var insecure = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 10 * time.Second}

func (a *authority) startProxy() {
	a.t.Helper()
	target := &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", a.port)}
	forward := &httputil.ReverseProxy{
		// The host stays: Pebble makes its addresses from it.
		Rewrite:      func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host },
		Transport:    insecure.Transport,
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	a.proxy = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.mode.Load() == "down" {
			panic(http.ErrAbortHandler)
		}
		if r.URL.Path == "/order-plz" {
			a.orders.Add(1)
			if a.mode.Load() == "limited" {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusTooManyRequests)
				_, _ = io.WriteString(w, `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many new orders recently","status":429}`)
				return
			}
		}
		forward.ServeHTTP(w, r)
	}))
	a.proxy.Config.ErrorLog = nil
	a.t.Cleanup(a.proxy.Close)
	certificate := a.proxy.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// material is one of Pebble's certificates or keys; it has RSA keys alone to
// give away.
func (a *authority) material(path string) ([]byte, error) {
	reply, err := insecure.Get(fmt.Sprintf("https://127.0.0.1:%d/%s/0", a.admin, path))
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM: %s", path, text)
	}
	return block.Bytes, nil
}

func (a *authority) certificate(path string) (*x509.Certificate, error) {
	der, err := a.material(path)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// roots are what its clients trust.
func (a *authority) roots() *x509.CertPool {
	a.t.Helper()
	root, err := a.certificate("roots")
	if err != nil {
		a.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return pool
}

// status answers OCSP requests, for seconds at a time.
func (a *authority) status(w http.ResponseWriter, r *http.Request) {
	answer, err := a.judge(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(answer)
}

func (a *authority) judge(question io.Reader) ([]byte, error) {
	body, err := io.ReadAll(question)
	if err != nil {
		return nil, err
	}
	request, err := ocsp.ParseRequest(body)
	if err != nil {
		return nil, err
	}
	issuer, err := a.certificate("intermediates")
	if err != nil {
		return nil, err
	}
	der, err := a.material("intermediate-keys")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS1PrivateKey(der)
	if err != nil {
		return nil, err
	}
	now := time.Now().Truncate(time.Second)
	answer := ocsp.Response{Status: ocsp.Good, SerialNumber: request.SerialNumber, ThisUpdate: now.Add(-2 * time.Second), NextUpdate: now.Add(2 * time.Second)}
	if _, revoked := a.revoked.Load(request.SerialNumber.String()); revoked {
		answer.Status, answer.RevokedAt, answer.RevocationReason = ocsp.Revoked, now, ocsp.Superseded
	}
	return ocsp.CreateResponse(issuer, issuer, answer, key)
}

// caddyfile is a Denia with certificates of the authority; options go into the
// block denia, policy into the TLS of its site.
func (a *authority) caddyfile(s *server, options, policy []string, storage string) string {
	return fmt.Sprintf(`{
	admin 127.0.0.1:%d
	persist_config off
	grace_period 2s
	http_port %d
	https_port %d
	storage %s
	on_demand_tls {
		permission denia
	}
	denia {
		data_dir %s
		domains {
			resolver %s
		}
		%s
	}
}
http:// {
	bind 127.0.0.1
	denia
}
https:// {
	bind 127.0.0.1
	tls {
		on_demand
		issuer acme {
			dir %s/dir
			trusted_roots %s
			%s
		}
	}
	denia
}
`, s.admin, s.port, s.https, storage, s.data, a.dns.Addr, strings.Join(options, "\n\t\t"), a.proxy.URL, filepath.Join(a.dir, "cert.pem"), strings.Join(policy, "\n\t\t\t"))
}
