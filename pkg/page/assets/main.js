// The page: it receives events, and shows the model.

// Shapes and colours of verdicts and severities are those of states.
const VERDICTS = new Map([["ok", STATE.ok], ["degraded", STATE.lossy], ["down", STATE.failing]]);
const SEVERITIES = new Map([["severe", STATE.failing], ["warning", STATE.lossy], ["notice", STATE.unknown]]);
const SHOWN_REPAIRS = 5;

class Page {
  constructor() {
    this.model = new Model();
    this.palette = new Palette(() => this.schedule());
    this.details = new Details(this.model, (subnet) => {
      this.picture.open = subnet;
      this.picture.draw();
    });
    this.table = new Table((peers) => this.details.open(peers), () => this.schedule());
    this.picture = new Picture(this.palette, (peers) => this.details.open(peers));
    this.traffic = new Traffic(this.palette);
    this.stream = new Stream((e) => this.receive(e), (phase) => this.connection(phase));
    this.allRepairs = false;
    this.changed = true; // peers have, since they were shown
    byID("reload").addEventListener("click", () => location.reload());
    byID("repairs-more").addEventListener("click", () => {
      this.allRepairs = true;
      this.showRepairs(this.model.document);
      refreshAges(byID("repairs"), this.model.now());
    });
    for (const id of ["picture-canvas", "traffic-canvas"]) new ResizeObserver(() => this.schedule()).observe(byID(id));
    setInterval(() => this.tick(), 1000);
    this.stream.open();
  }

  receive(event) {
    if (this.model.apply(event)) this.changed = true;
    this.showVerdict(this.model.document); // in the tab as well, which may be all that can be seen
    this.schedule();
  }

  // schedule shows the model in the next frame, once for all that has changed until then. Nothing
  // is drawn while the page is not visible.
  schedule() {
    if (this.scheduled || !this.model.document) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.show();
    });
  }

  show() {
    const d = this.model.document;
    byID("content").hidden = byID("verdict").hidden = false;
    setText(byID("host"), [clean(d.lease.subnet), clean(d.backend.type), clean(d.uplink.interface), clean(d.uplink.public_ip)].filter((t) => t).join(" · "));
    byID("newer").hidden = this.page === undefined || this.page === d.page;
    this.page ??= d.page;
    this.showConditions(d);
    this.showFacts(d);
    this.showRepairs(d);
    if (this.changed) this.table.update(this.model);
    this.changed = false;
    this.picture.update(this.model, this.table.filter);
    this.traffic.update(this.model.traffic);
    this.details.update();
    this.tick();
  }

  showVerdict(d) {
    const state = VERDICTS.get(d.verdict) ?? STATE.unknown;
    const word = clean(d.verdict) || "unknown";
    document.title = `${word}: ${clean(d.lease.subnet) || "no subnet"} – flannel`;
    const section = byID("verdict");
    if (section.dataset.state !== state.id) {
      section.dataset.state = state.id;
      byID("verdict-mark").replaceChildren(shape(state));
      const colour = encodeURIComponent(this.palette.get(state.id));
      byID("icon").href = `data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='-8 -8 16 16'><path fill='${colour}' d='${state.path}'/></svg>`;
    }
    setText(byID("verdict-word"), word);
    setText(byID("verdict-reason"), clean(d.reason) || "All is as it should be.");
    byID("verdict-hint").hidden = state === STATE.ok;
  }

  showConditions(d) {
    const key = JSON.stringify(d.conditions);
    if (key === this.conditions) return;
    this.conditions = key;
    byID("conditions").hidden = d.conditions.length === 0;
    byID("conditions-list").replaceChildren(...d.conditions.map((c) => {
      const item = element("li", {},
        element("p", { class: "what" }, shape(SEVERITIES.get(c.severity) ?? STATE.lossy), element("strong", {}, clean(c.severity)), " ", element("span", {}, clean(c.text))),
        element("p", { class: "muted" }, since(time(c.since), "since ")));
      const remedy = clean(c.remedy);
      if (remedy) item.append(command(remedy));
      return item;
    }));
  }

  showFacts(d) {
    // The last repair has its own list.
    const facts = d.facts.filter(([name]) => name !== "last repair");
    const list = byID("facts");
    while (list.children.length > facts.length) list.lastChild.remove();
    while (list.children.length < facts.length) list.append(element("div", {}, element("dt"), element("dd")));
    facts.forEach(([name, text], i) => {
      setText(list.children[i].firstChild, clean(name));
      setText(list.children[i].lastChild, clean(text));
    });
  }

  showRepairs(d) {
    const n = this.allRepairs ? d.repairs.length : SHOWN_REPAIRS;
    const key = JSON.stringify([n, d.repairs]);
    if (key === this.repairs) return;
    this.repairs = key;
    byID("repairs-none").hidden = d.repairs.length > 0;
    const more = byID("repairs-more");
    more.hidden = d.repairs.length <= n;
    setText(more, `Show all ${d.repairs.length}`);
    byID("repairs").replaceChildren(...d.repairs.slice(0, n).map((r) => element("li", {},
      since(time(r.at), "", " ago"),
      element("span", {}, clean(r.what)),
      element("code", { title: clean(r.example) }, clean(r.example)))));
  }

  // connection shows whether the data is up to date.
  connection(phase) {
    const lost = byID("lost");
    document.body.dataset.connection = phase;
    setText(byID("live-text"), { connecting: "connecting", live: "live", lost: "connection lost", full: "not connected", paused: "paused" }[phase]);
    const text = {
      lost: "The connection to flanneld is lost, and is tried again.",
      full: "This flanneld serves as many pages as it can. The connection is tried again.",
    }[phase];
    lost.hidden = !text;
    if (text) {
      const old = this.model.document ? ["What you see is the state of ", since(time(this.model.document.now), "", " ago"), "."] : ["There is no state to show yet."];
      lost.replaceChildren(text, " ", element("span", { "aria-live": "off" }, ...old));
    }
    this.tick();
  }

  // tick refreshes the ages.
  tick() {
    if (document.hidden || !this.model.document) return;
    setText(byID("live-clock"), this.stream.phase === "live" ? clock(this.model.now()) : "");
    refreshAges(document, this.model.now());
  }
}

// command returns a command that can be copied.
function command(text) {
  const code = element("code", {}, text);
  const button = element("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      setText(button, "Copied");
    } catch {
      // Without TLS, a browser may refuse: then the text is selected.
      getSelection().selectAllChildren(code);
      setText(button, "Selected");
    }
    setTimeout(() => setText(button, "Copy"), 2000);
  });
  return element("div", { class: "command" }, code, button);
}

// Details shows all about a peer, or lists the peers of a group.
class Details {
  constructor(model, opened) {
    this.model = model;
    this.opened = opened;
    this.panel = byID("details");
    byID("details-close").addEventListener("click", () => this.close());
    document.addEventListener("keydown", (e) => { if (e.key === "Escape" && !this.panel.hidden) this.close(); });
  }

  open(peers) {
    if (this.panel.hidden) this.before = document.activeElement;
    this.subnets = peers.map((p) => p.data.subnet);
    this.shown = null;
    this.panel.hidden = false;
    this.update();
    refreshAges(this.panel, this.model.now());
    byID("details-title").focus({ preventScroll: true });
  }

  close() {
    this.panel.hidden = true;
    this.opened(null);
    this.before?.focus({ preventScroll: true });
  }

  update() {
    if (this.panel.hidden) return;
    const peers = this.subnets.map((s) => this.model.bySubnet.get(s));
    if (this.shown && peers.every((p, i) => p === this.shown[i])) return;
    this.shown = peers;
    const there = peers.filter((p) => p);
    if (peers.length > 1) this.showGroup(there);
    else this.showPeer(there[0]);
  }

  showPeer(peer) {
    const title = byID("details-title");
    this.opened(peer?.subnet ?? null);
    if (!peer) {
      byID("details-body").replaceChildren(element("p", {}, "It has left the network."));
      return;
    }
    setText(title, `Peer ${peer.subnet}`);
    const { data } = peer;
    const traffic = (t) => (t ? `${bytes(number(t.bytes) ?? 0)}, ${plural(number(t.packets) ?? 0, "packet")}` : "");
    const rows = [
      ["Public IP", peer.publicIP],
      ["Round trip", milliseconds(peer.rtt) || "unknown"],
      ["Loss", percent(peer.loss) || "unknown"],
      ["Probe", clean(data.probe)],
      ["Kernel has", peer.programmed || "nothing"],
      ["Sent", traffic(data.sent)],
      ["Received", traffic(data.received)],
      ["Lease changed", peer.changed === null ? "before the start" : since(peer.changed, "", " ago")],
    ].filter(([, value]) => value);
    byID("details-body").replaceChildren(
      element("p", { class: "state" }, shape(peer.state), element("strong", {}, peer.state.id)),
      element("p", { class: "muted" }, peer.state.meaning),
      ...(peer.reason ? [element("p", { class: "reason" }, peer.reason)] : []),
      element("dl", {}, ...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))));
  }

  showGroup(peers) {
    const most = 50;
    setText(byID("details-title"), plural(peers.length, "peer"));
    this.opened(null);
    const sorted = [...peers].sort((a, b) => a.state.rank - b.state.rank || a.key - b.key);
    byID("details-body").replaceChildren(element("ul", { class: "group" }, ...sorted.slice(0, most).map((p) => {
      const button = element("button", { type: "button", class: "mono" }, p.subnet);
      button.addEventListener("click", () => this.open([p]));
      return element("li", {}, shape(p.state), button, element("span", { class: "muted" }, p.state.id));
    })));
  }
}

new Page();
