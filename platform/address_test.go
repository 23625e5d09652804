package platform_test

import (
	"net/netip"
	"testing"

	"github.com/denia-paas/denia/platform"
)

func TestPublicAddresses(t *testing.T) {
	for text, public := range map[string]bool{
		"1.1.1.1":                  true,
		"9.255.255.255":            true,
		"172.32.0.1":               true,
		"100.128.0.1":              true,
		"2606:4700::1":             true,
		"::ffff:1.1.1.1":           true,
		"64:ff9b::101:101":         true, // NAT64 of 1.1.1.1
		"0.0.0.0":                  false,
		"0.1.2.3":                  false,
		"10.0.0.1":                 false,
		"100.64.0.1":               false,
		"100.127.255.255":          false,
		"127.0.0.1":                false,
		"127.255.255.254":          false,
		"169.254.169.254":          false,
		"172.16.0.1":               false,
		"172.31.255.255":           false,
		"192.0.0.1":                false,
		"192.0.2.1":                false,
		"192.168.1.1":              false,
		"198.18.0.1":               false,
		"198.51.100.7":             false,
		"203.0.113.7":              false,
		"224.0.0.1":                false,
		"239.255.255.255":          false,
		"240.0.0.1":                false,
		"255.255.255.255":          false,
		"::":                       false,
		"::1":                      false,
		"::7f00:1":                 false, // IPv4-compatible, long gone
		"::ffff:127.0.0.1":         false,
		"::ffff:10.0.0.1":          false,
		"::ffff:169.254.169.254":   false,
		"64:ff9b::7f00:1":          false, // NAT64 of 127.0.0.1
		"64:ff9b::a9fe:a9fe":       false, // of 169.254.169.254
		"64:ff9b::a00:1":           false, // of 10.0.0.1
		"64:ff9b:1::101:101":       false, // a network's own translation
		"2002:7f00:1::1":           false, // 6to4 of 127.0.0.1
		"2002:a00:1::1":            false, // of 10.0.0.1
		"2001:0:101:101::1":        false, // Teredo
		"2001:db8::1":              false,
		"fc00::1":                  false,
		"fd12:3456::1":             false,
		"fe80::1":                  false,
		"fe80::1%eth0":             false,
		"2606:4700::1%eth0":        false,
		"fec0::1":                  false,
		"ff02::1":                  false,
		"100::1":                   false,
		"4000::1":                  false,
		"3fff::1":                  false,
		"::ffff:0:127.0.0.1":       false,
		"2002:a9fe:a9fe::a9fe:a9f": false,
	} {
		if got := platform.PublicAddress(netip.MustParseAddr(text)); got != public {
			t.Errorf("%s: %v, want %v", text, got, public)
		}
	}
	if platform.PublicAddress(netip.Addr{}) {
		t.Error("no address at all is public")
	}
}
