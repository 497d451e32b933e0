// The model: the latest state of the daemon, from its events. It does not use the document.

// STATES are the states of a peer, the worst first. A path is the shape of a state in a box from -8
// to 8, so that states can be told apart without colours; dash is the dash pattern of a link.
const STATES = [
  { id: "failing", path: "M-6-3.5-3.5-6 0-2.5 3.5-6 6-3.5 2.5 0 6 3.5 3.5 6 0 2.5-3.5 6-6 3.5-2.5 0Z", dash: [2, 4],
    meaning: "It has answered probes before, and does not now, or full-size packets are lost." },
  { id: "unprogrammed", path: "M-6-6H6V6H-6ZM-3-3V3H3V-3Z", dash: [2, 6],
    meaning: "The kernel of this host lacks an object for it." },
  { id: "lossy", path: "M0-6.5 6.5 5.5H-6.5Z", dash: [8, 4],
    meaning: "It answers probes, but a good part of them is lost." },
  { id: "skipped", path: "M-6-2H6V2H-6Z", dash: [1, 9],
    meaning: "Its lease cannot be used, or conflicts with another one." },
  { id: "unknown", path: "M-6 0A6 6 0 1 0 6 0A6 6 0 1 0-6 0ZM-3.5 0A3.5 3.5 0 1 1 3.5 0A3.5 3.5 0 1 1-3.5 0Z", dash: [2, 4],
    meaning: "The kernel of this host was not read yet, or not for long." },
  { id: "unprobed", path: "M0-6.5 6.5 0 0 6.5-6.5 0ZM0-3-3 0 0 3 3 0Z", dash: [],
    meaning: "The kernel has what is needed to reach it. It has never answered a probe, or probes are off." },
  { id: "ok", path: "M-5.5 0A5.5 5.5 0 1 0 5.5 0A5.5 5.5 0 1 0-5.5 0Z", dash: [],
    meaning: "The kernel has what is needed to reach it, and it answers probes." },
];
STATES.forEach((s, rank) => { s.rank = rank; });
const STATE = Object.fromEntries(STATES.map((s) => [s.id, s]));

// stateOf returns the state of a peer: what the kernel has for it, and what its probes have shown.
function stateOf(p) {
  if (p.state === "skipped" || p.state === "unprogrammed") return STATE[p.state];
  if (p.state !== "ok") return STATE.unknown;
  if (p.probe === "failing" || p.probe === "lossy" || p.probe === "ok") return STATE[p.probe];
  return STATE.unprobed;
}

// parseAddress returns an IPv4 address as a number, or NaN.
function parseAddress(text) {
  const parts = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
  if (!parts) return NaN;
  return parts.slice(1).reduce((n, byte) => (byte > 255 ? NaN : n * 256 + Number(byte)), 0);
}

// Peer is a peer with what the page derives from it.
class Peer {
  // constructor takes what the daemon sends about a peer, and the overlay's device.
  constructor(data, device) {
    this.data = data;
    this.subnet = clean(data.subnet);
    this.publicIP = clean(data.public_ip);
    this.state = stateOf(data);
    this.reason = clean(data.reason);
    this.programmed = clean(data.programmed);
    // Most peers are on the same device, which the table need not repeat.
    this.kinds = this.programmed.endsWith(` on ${device}`) ? this.programmed.slice(0, -` on ${device}`.length) : this.programmed;
    this.rtt = number(data.rtt_ms);
    this.loss = number(data.loss);
    this.changed = time(data.changed);
    this.sent = number(data.sent?.bytes);
    this.received = number(data.received?.bytes);
    const [address, length] = this.subnet.split("/");
    this.key = parseAddress(address);
    this.end = this.key + 2 ** (32 - Number(length)); // not included
    this.ip = parseAddress(this.publicIP);
    this.text = [this.subnet, this.publicIP, this.state.id, this.reason, this.programmed].join(" ").toLowerCase();
  }
}

// Filter selects peers by words and by a state. An address selects the peer whose subnet has it.
class Filter {
  constructor(text, state) {
    this.words = text.toLowerCase().split(/\s+/).filter((w) => w);
    this.state = state;
  }

  get active() { return this.words.length > 0 || this.state !== ""; }

  matches(peer) {
    if (this.state && peer.state.id !== this.state) return false;
    return this.words.every((word) => {
      const address = parseAddress(word);
      return peer.text.includes(word) || (address >= peer.key && address < peer.end);
    });
  }
}

// Model is the latest state of the daemon.
class Model {
  constructor() {
    this.document = null; // without its peers; null before the first event
    this.traffic = null;
    this.peers = []; // sorted by subnet
    this.counts = {}; // of peers by state
    this.members = 0; // changes when peers come or go
    this.bySubnet = new Map();
    this.receivedAt = 0;
  }

  // apply takes over an event, and reports whether peers have changed.
  apply(event) {
    const { peers, gone, traffic, ...document } = event;
    if (event.whole) this.bySubnet.clear();
    let moved = event.whole || gone.length > 0;
    for (const subnet of gone) this.bySubnet.delete(subnet);
    for (const p of peers) {
      moved ||= !this.bySubnet.has(p.subnet);
      this.bySubnet.set(p.subnet, new Peer(p, clean(document.backend.device)));
    }
    if (moved || peers.length > 0) {
      this.peers = [...this.bySubnet.values()].sort((a, b) => a.key - b.key);
      this.counts = Object.fromEntries(STATES.map((s) => [s.id, 0]));
      for (const p of this.peers) this.counts[p.state.id]++;
    }
    if (moved) this.members++;
    if (traffic) this.traffic = traffic;
    this.document = document;
    this.receivedAt = performance.now();
    return moved || peers.length > 0;
  }

  // now returns the present time of the daemon's clock, which may differ from that of the browser.
  now() { return time(this.document.now) + this.age(); }

  // age returns the time since the last event.
  age() { return performance.now() - this.receivedAt; }
}
