package platform

import "net/netip"

var (
	// nat64 holds the IPv4 addresses that a NAT64 translates to (RFC 6052),
	// sixToFour those that a 6to4 relay would (RFC 3056).
	nat64     = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour = netip.MustParsePrefix("2002::/16")

	global6 = netip.MustParsePrefix("2000::/3")

	// special are the blocks inside the unicast space that are nobody's public
	// address (IANA's special-purpose registries).
	special = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT
		netip.MustParsePrefix("192.0.0.0/24"),
		netip.MustParsePrefix("192.0.2.0/24"),
		netip.MustParsePrefix("192.88.99.0/24"),
		netip.MustParsePrefix("198.18.0.0/15"),
		netip.MustParsePrefix("198.51.100.0/24"),
		netip.MustParsePrefix("203.0.113.0/24"),
		netip.MustParsePrefix("240.0.0.0/4"),
		netip.MustParsePrefix("2001::/23"), // Teredo among them
		netip.MustParsePrefix("2001:db8::/32"),
		netip.MustParsePrefix("3fff::/20"),
	}
)

// PublicAddress tells whether addr can be the address of a host on the
// Internet, and of none on this machine or its own networks. An IPv6 address
// that stands for an IPv4 address (mapped, NAT64, 6to4) is what that is.
func PublicAddress(addr netip.Addr) bool {
	if addr.Zone() != "" {
		return false
	}
	addr = addr.Unmap()
	if addr.Is6() {
		whole := addr.As16()
		switch {
		case nat64.Contains(addr):
			addr = netip.AddrFrom4([4]byte(whole[12:]))
		case sixToFour.Contains(addr):
			addr = netip.AddrFrom4([4]byte(whole[2:6]))
		case !global6.Contains(addr):
			return false
		}
	}
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	for _, block := range special {
		if block.Contains(addr) {
			return false
		}
	}
	return true
}
