package pid1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/u-root/u-root/pkg/dhclient"
	"github.com/vishvananda/netlink"
)

const (
	answerWait  = 4 * time.Second // for a DHCP server, the first time, and then twice as long
	answerTries = 2
)

// dhcp asks for a lease on one link (RFC 2131). There may be servers that lead nowhere: forgotten ones, those of
// another network, those of people with evil intent. So each gets one turn, and then another that answers.
type dhcp struct {
	link  netlink.Link
	asked map[string]bool   // servers that have had their turn
	lease *dhclient.Packet4 // nil: none yet
}

// wishes are what the node wants to be told. Servers leave out what nobody asks for.
var wishes = dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionRouter,
	dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionHostName)

// ask gets a lease from the first server that answers and has not had its turn. An error leaves the lease as it was.
func (d *dhcp) ask(ctx context.Context, tries int) error {
	client, err := nclient4.New(d.link.Attrs().Name, nclient4.WithTimeout(answerWait), nclient4.WithRetry(tries))
	if err != nil {
		return err
	}
	defer client.Close()
	discover, err := dhcpv4.NewDiscovery(client.InterfaceAddr(), wishes, dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(nclient4.MaxMessageSize)))
	if err != nil {
		return err
	}
	offer, err := client.SendAndRead(ctx, client.RemoteAddr(), discover, nclient4.IsAll(nclient4.IsMessageType(dhcpv4.MessageTypeOffer), d.hasTurn))
	if err != nil {
		d.turnsOver()
		return errors.New("no DHCP server answers")
	}
	d.asked[server(offer)] = true
	lease, err := client.RequestFromOffer(ctx, offer, wishes)
	if err != nil {
		return fmt.Errorf("the DHCP server %s does not keep to its offer", server(offer))
	}
	packet := dhclient.NewPacket4(d.link, lease.ACK)
	// Not every part of the library expects a mask with holes, and anybody may answer.
	if ones, bits := packet.Lease().Mask.Size(); bits != 32 || ones == 0 {
		return fmt.Errorf("the DHCP server %s gives the netmask %v", server(offer), net.IP(lease.ACK.SubnetMask()))
	}
	d.lease = packet
	return nil
}

func server(p *dhcpv4.DHCPv4) string { return p.ServerIdentifier().String() }

func (d *dhcp) hasTurn(offer *dhcpv4.DHCPv4) bool { return !d.asked[server(offer)] }

// turnsOver gives every server another turn, but for the one whose lease is in use.
func (d *dhcp) turnsOver() {
	clear(d.asked)
	if d.lease != nil {
		d.asked[server(d.lease.P)] = true
	}
}

// take configures the link: wholly, or its address alone, so that what is behind another link stays in use.
func (d *dhcp) take(wholly bool) error {
	if wholly {
		return d.lease.Configure()
	}
	return netlink.AddrReplace(d.link, &netlink.Addr{IPNet: d.lease.Lease()})
}

// drop takes the link's address away, and with the last one the kernel drops its routes.
func (d *dhcp) drop() {
	addrs, _ := netlink.AddrList(d.link, netlink.FAMILY_V4)
	for _, a := range addrs {
		_ = netlink.AddrDel(d.link, &a) // what stays does not keep the new one away
	}
}

// what is the lease for a person.
func (d *dhcp) what() string {
	return fmt.Sprintf("%s from the DHCP server %s", d.lease.Lease(), server(d.lease.P))
}
