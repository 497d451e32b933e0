package firewall

// TargetAction returns what a target of iptables does with a packet, other than a jump.
func TargetAction(name string) (do Action, sets Effects) {
	switch name {
	case "ACCEPT":
		return Pass, 0
	case "DROP", "REJECT":
		return Drop, 0
	case "RETURN":
		return Back, 0
	case "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP":
		return Translate, 0
	case "MARK", "CONNMARK", "HMARK":
		return Next, SetsMark
	case "NOTRACK", "CT":
		return Next, SetsTracking
	case "LOG", "NFLOG", "ULOG", "TRACE", "TOS", "DSCP", "ECN", "TTL", "HL", "CHECKSUM", "TCPMSS", "TCPOPTSTRIP", "SET", "AUDIT",
		"CLASSIFY", "SECMARK", "CONNSECMARK", "TEE", "LED", "RATEEST", "IDLETIMER":
		return Next, 0
	}
	return PassOrDrop, 0
}
