// The picture of the overlay: this host in the middle, its peers around it in the order of their
// subnets, and a link to each. Few peers have their names; many are dots on rings, without links
// where all is well; very many are grouped, each group with the state of its worst peer.

// A canvas stays smooth with thousands of peers, where elements do not.

const NAMED = 20; // most peers that have names, of a wide picture
const NAMED_NARROW = 8;
const LINKED = 120; // most peers of which each has a link
const MAX_LINKS = 60; // to peers that have a fault; more would hide each other
const LEAST_FAULT = 0.75; // size of a dot with a fault, among many
const NEAREST_DOTS = 18; // pixels between dots on rings
const CLOSEST_DOTS = 7;
const REACH = 16; // pixels around a node in which the pointer finds it

// canvasOf sizes a canvas to its element, and returns its context in pixels of the page.
function canvasOf(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

// Palette reads the colours of the style, again when the scheme changes.
class Palette {
  constructor(changed) {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.known = {};
      changed();
    });
    this.known = {};
  }

  get(name) {
    return (this.known[name] ??= getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  }
}

// STEPS is the number of parts by which an ellipse is measured.
const STEPS = 240;

// Ring is an ellipse, on which dots have equal distances.
class Ring {
  constructor(rx, ry) {
    Object.assign(this, { rx, ry });
    // https://en.wikipedia.org/wiki/Perimeter_of_an_ellipse, Ramanujan's approximation
    this.length = Math.PI * (3 * (rx + ry) - Math.sqrt((3 * rx + ry) * (rx + 3 * ry)));
  }

  holds(pitch) { return Math.floor(this.length / pitch); }

  // place returns n places around a middle, clockwise from the top.
  place(n, x, y) {
    const at = (step) => {
      const angle = (step / STEPS) * 2 * Math.PI;
      return { x: x + Math.sin(angle) * this.rx, y: y - Math.cos(angle) * this.ry };
    };
    const along = [0]; // length at each step
    for (let i = 1; i <= STEPS; i++) {
      const [a, b] = [at(i - 1), at(i)];
      along.push(along[i - 1] + Math.hypot(b.x - a.x, b.y - a.y));
    }
    const places = [];
    for (let i = 0, step = 0; i < n; i++) {
      const want = (i / n) * along[STEPS];
      while (along[step + 1] <= want) step++;
      places.push(at(step + (want - along[step]) / (along[step + 1] - along[step])));
    }
    return places;
  }
}

// ringsIn returns the rings in a box around the middle, the outermost first.
function ringsIn(width, height, pitch) {
  const rings = [];
  const [rx, ry] = [width / 2 - 14, height / 2 - 14];
  for (let inset = 0; ry - inset >= 52 && rx - inset >= 84; inset += pitch) rings.push(new Ring(rx - inset, ry - inset));
  return rings;
}

const capacity = (rings, pitch) => rings.reduce((sum, r) => sum + r.holds(pitch), 0);

// spread places n nodes on rings in a box: on as few rings as suffice, in order from the inside to
// the outside. If they are too many, it places groups of them.
function spread(n, width, height) {
  let pitch = NEAREST_DOTS;
  let rings = ringsIn(width, height, pitch);
  while (pitch > CLOSEST_DOTS && capacity(rings, pitch) < n) rings = ringsIn(width, height, (pitch -= 0.5));
  const group = Math.max(1, Math.ceil(n / Math.max(1, capacity(rings, pitch))));
  const nodes = Math.ceil(n / group);
  while (rings.length > 1 && capacity(rings.slice(0, -1), pitch) >= nodes) rings.pop();
  const all = capacity(rings, pitch);
  const places = [];
  let held = 0;
  for (const ring of rings.reverse()) {
    held += ring.holds(pitch);
    places.push(...ring.place(Math.round((held / all) * nodes) - places.length, width / 2, height / 2));
  }
  return { places, group, pitch };
}

// Picture draws the picture and lets nodes be selected. A node has peers, a state and a place.
class Picture {
  constructor(palette, opened) {
    this.canvas = byID("picture-canvas");
    this.tip = byID("picture-tip");
    this.palette = palette;
    this.opened = opened;
    this.paths = Object.fromEntries(STATES.map((s) => [s.id, new Path2D(s.path)]));
    this.nodes = [];
    this.placed = "";
    this.selected = null;
    this.open = null; // subnet whose details are shown
    this.canvas.addEventListener("pointermove", (e) => this.point(e));
    this.canvas.addEventListener("pointerleave", () => this.select(null));
    this.canvas.addEventListener("click", (e) => {
      this.point(e);
      if (this.selected) this.opened(this.selected.peers);
    });
    this.canvas.addEventListener("keydown", (e) => this.key(e));
    this.canvas.addEventListener("blur", () => this.select(null));
  }

  // update draws the peers of a model.
  update(model, filter) {
    this.model = model;
    this.filter = filter;
    this.draw();
  }

  draw() {
    if (!this.model?.document) return;
    const { context, width, height } = canvasOf(this.canvas);
    if (width === 0) return;
    this.place(width, height);
    for (const node of this.nodes) {
      node.state = node.peers.reduce((worst, p) => (p.state.rank < worst.rank ? p.state : worst), STATE.ok);
      node.dim = this.filter.active && !node.peers.some((p) => this.filter.matches(p));
    }
    this.drawLinks(context, width / 2, height / 2);
    this.drawHost(context, width / 2, height / 2);
    if (this.named && this.nodes.length <= (this.wide ? 12 : 4)) {
      for (const node of this.nodes) this.drawLinkLabel(context, node, width / 2, height / 2);
    }
    this.drawNodes(context);
    this.describe();
    this.showTip();
  }

  // place computes the places of the nodes, if peers have come or gone, or the size has changed.
  place(width, height) {
    const { peers, members } = this.model;
    const placed = `${members} ${width} ${height}`;
    if (placed === this.placed) {
      // Changed peers are other objects.
      for (const node of this.nodes) node.peers = node.peers.map((p) => this.model.bySubnet.get(p.data.subnet));
      return;
    }
    this.placed = placed;
    this.wide = width >= 480;
    this.named = peers.length <= (this.wide ? NAMED : NAMED_NARROW);
    const selected = this.selected?.peers[0].subnet;
    if (this.named) {
      this.nodes = this.circle(peers, width, height);
      this.size = 1;
    } else {
      const { places, group, pitch } = spread(peers.length, width, height);
      this.nodes = places.map((at, i) => ({ ...at, peers: peers.slice(i * group, (i + 1) * group) }));
      this.size = Math.min(0.9, (pitch * 0.38) / 5.5);
    }
    this.selected = this.nodes.find((n) => n.peers[0].subnet === selected) ?? null;
  }

  // circle places peers that have names, which need space beside them, or below them in a narrow
  // picture.
  circle(peers, width, height) {
    const corners = !this.wide && peers.length === 4 ? Math.SQRT2 : 1;
    const rx = (width / 2 - (this.wide ? 130 : 58)) * corners;
    const ry = (height / 2 - 44) * corners;
    // In a narrow picture, links are not horizontal: there is no space for their labels.
    let first = -Math.PI / 2;
    if (this.wide && peers.length === 2) first = 0;
    else if (!this.wide && peers.length % 4 === 0) first += Math.PI / peers.length;
    return peers.map((p, i) => {
      const a = first + (i / peers.length) * 2 * Math.PI;
      return { peers: [p], x: width / 2 + Math.cos(a) * rx, y: height / 2 + Math.sin(a) * ry, side: Math.abs(Math.cos(a)) > 0.35 ? Math.sign(Math.cos(a)) : 0, below: Math.sin(a) > -0.01 };
    });
  }

  drawLinks(c, x, y) {
    const isQuiet = ({ state }) => [STATE.ok, STATE.unprobed, STATE.unknown, STATE.skipped].includes(state);
    const all = this.nodes.length <= LINKED;
    const faults = all || this.nodes.reduce((n, node) => n + !isQuiet(node), 0) <= MAX_LINKS;
    for (const node of this.nodes) {
      const { state } = node;
      const quiet = isQuiet(node);
      if (node !== this.selected && !all && (quiet || !faults)) continue;
      c.globalAlpha = (this.named || node === this.selected ? 1 : quiet ? 0.3 : 0.6) * (node.dim ? 0.2 : 1);
      c.strokeStyle = this.palette.get(state.id);
      c.lineWidth = this.named ? (quiet ? 1.5 : 2) : 1;
      c.setLineDash(state.dash);
      c.beginPath();
      c.moveTo(x, y);
      c.lineTo(node.x, node.y);
      c.stroke();
    }
    c.globalAlpha = 1;
    c.setLineDash([]);
  }

  // drawLinkLabel writes what the probes of a link have shown.
  drawLinkLabel(c, node, x, y) {
    const [peer] = node.peers;
    const text = peer.state === STATE.ok ? milliseconds(peer.rtt) : peer.state === STATE.lossy ? `${percent(peer.loss)} lost` : "";
    if (!text) return;
    const [left, top] = [x + (node.x - x) * 0.6, y + (node.y - y) * 0.6];
    c.font = `11px ${this.palette.get("sans")}`;
    c.textAlign = "center";
    c.textBaseline = "middle";
    const width = c.measureText(text).width + 10;
    c.fillStyle = this.palette.get("card");
    c.fillRect(left - width / 2, top - 9, width, 18);
    c.globalAlpha = node.dim ? 0.2 : 1;
    c.fillStyle = this.palette.get("muted");
    c.fillText(text, left, top + 0.5);
    c.globalAlpha = 1;
  }

  drawHost(c, x, y) {
    const subnet = clean(this.model.document.lease.subnet) || "no subnet";
    c.font = `600 12px ${this.palette.get("mono")}`;
    const width = Math.max(c.measureText(subnet).width + 20, 84);
    c.fillStyle = this.palette.get("card");
    c.strokeStyle = this.palette.get("text");
    c.lineWidth = 1.5;
    c.beginPath();
    c.roundRect(x - width / 2, y - 21, width, 42, 6);
    c.fill();
    c.stroke();
    c.textAlign = "center";
    c.textBaseline = "middle";
    c.fillStyle = this.palette.get("muted");
    c.font = `11px ${this.palette.get("sans")}`;
    c.fillText("this host", x, y - 9);
    c.fillStyle = this.palette.get("text");
    c.font = `600 12px ${this.palette.get("mono")}`;
    c.fillText(subnet, x, y + 8);
  }

  drawNodes(c) {
    // Faults are above others.
    for (const node of [...this.nodes].sort((a, b) => b.state.rank - a.state.rank)) {
      const of = this.paths[node.state.id];
      const size = node.state === STATE.ok ? this.size : Math.max(this.size, LEAST_FAULT);
      c.globalAlpha = node.dim ? 0.2 : 1;
      c.save();
      c.translate(node.x, node.y);
      c.scale(size, size);
      if (this.named) {
        c.fillStyle = this.palette.get("card");
        c.beginPath();
        c.arc(0, 0, 10, 0, 2 * Math.PI);
        c.fill();
      }
      c.fillStyle = this.palette.get(node.state.id);
      c.fill(of);
      c.restore();
      if (this.named) this.drawName(c, node);
      const opened = node.peers.some((p) => p.subnet === this.open);
      if (node === this.selected || opened) {
        c.globalAlpha = 1;
        c.strokeStyle = this.palette.get("accent");
        c.lineWidth = 2;
        c.beginPath();
        c.arc(node.x, node.y, Math.max(7, 11 * size), 0, 2 * Math.PI);
        c.stroke();
      }
    }
    c.globalAlpha = 1;
  }

  drawName(c, node) {
    const [peer] = node.peers;
    const side = this.wide ? node.side : 0;
    const lines = this.nodes.length <= 12 || !this.wide ? [peer.subnet, peer.publicIP] : [peer.subnet];
    let x = node.x + side * 16;
    let y = node.y - (lines.length - 1) * 7.5;
    if (side === 0) y = node.below ? node.y + 20 : node.y - 20 - (lines.length - 1) * 15;
    c.textAlign = side > 0 ? "left" : side < 0 ? "right" : "center";
    c.textBaseline = "middle";
    lines.forEach((line, i) => {
      c.font = `${i === 0 ? 12 : 11}px ${this.palette.get("mono")}`;
      c.fillStyle = this.palette.get(i === 0 ? "text" : "muted");
      c.fillText(line, x, y + 15 * i);
    });
  }

  // describe sets what a screen reader says about the picture.
  describe() {
    const parts = STATES.filter((s) => this.model.counts[s.id] > 0).map((s) => `${count(this.model.counts[s.id])} ${s.id}`);
    const label = `Map of ${plural(this.model.peers.length, "peer")} around this host: ${parts.join(", ") || "none"}`;
    if (this.canvas.getAttribute("aria-label") !== label) this.canvas.setAttribute("aria-label", label);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let nearest = null;
    let least = REACH * (this.named ? 1.5 : 1);
    for (const node of this.nodes) {
      const distance = Math.hypot(node.x - x, node.y - y);
      if (distance < least) [nearest, least] = [node, distance];
    }
    this.canvas.classList.toggle("over", nearest !== null);
    this.select(nearest);
  }

  key(event) {
    const last = this.nodes.length - 1;
    const at = this.nodes.indexOf(this.selected);
    const to = { ArrowRight: at < last ? at + 1 : 0, ArrowDown: at < last ? at + 1 : 0, ArrowLeft: at > 0 ? at - 1 : last, ArrowUp: at > 0 ? at - 1 : last, Home: 0, End: last }[event.key];
    if (to !== undefined && last >= 0) {
      this.select(this.nodes[to]);
      setText(byID("picture-said"), this.words(this.selected));
    } else if ((event.key === "Enter" || event.key === " ") && this.selected) {
      this.opened(this.selected.peers);
    } else if (event.key === "Escape" && this.selected) {
      this.select(null);
    } else {
      return;
    }
    event.preventDefault();
  }

  select(node) {
    if (node === this.selected) return;
    this.selected = node;
    this.draw();
  }

  // words describes a node.
  words(node) {
    const [first] = node.peers;
    if (node.peers.length > 1) {
      const ill = node.peers.filter((p) => p.state !== STATE.ok).length;
      return `${node.peers.length} peers, ${first.subnet} to ${node.peers.at(-1).subnet}${ill ? `, ${ill} not ok` : ", all ok"}`;
    }
    return [first.subnet, first.publicIP, first.state.id, milliseconds(first.rtt), first.reason].filter((t) => t).join(", ");
  }

  showTip() {
    const node = this.selected;
    this.tip.hidden = node === null;
    if (!node) return;
    setText(this.tip, this.words(node));
    // Beside the node, and within the picture.
    const half = Math.min(this.tip.offsetWidth / 2, this.canvas.clientWidth / 2);
    const x = Math.max(half, Math.min(node.x, this.canvas.clientWidth - half));
    const above = node.y > this.canvas.clientHeight / 2;
    Object.assign(this.tip.style, { left: `${x}px`, top: `${node.y + (above ? -16 : 16)}px` });
    Object.assign(this.tip.dataset, { x: Math.round(node.x), y: Math.round(node.y) });
    this.tip.classList.toggle("above", above);
  }
}
