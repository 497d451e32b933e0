// The table of peers. If there are many, only the rows that can be seen exist, so that thousands of
// peers cost no more than a few; the page scrolls as if all of them did.

const FEW = 100; // rows that all exist, so that the browser can search and print them
const OVERSCAN = 8; // rows above and below those that can be seen

// COLUMNS are the columns of the table: by what peers are sorted, the largest first if that is of
// more interest, and what a cell shows.
const COLUMNS = [
  { id: "state", label: "State", value: (p) => p.state.rank },
  { id: "subnet", label: "Subnet", value: (p) => p.key },
  { id: "ip", label: "Public IP", value: (p) => p.ip, text: (p) => p.publicIP },
  { id: "rtt", label: "RTT", value: (p) => p.rtt, text: (p) => milliseconds(p.rtt) },
  { id: "loss", label: "Loss", value: (p) => p.loss, largest: true, text: (p) => percent(p.loss) },
  { id: "sent", label: "Sent", value: (p) => p.sent, largest: true, text: (p) => (p.sent === null ? "" : bytes(p.sent)) },
  { id: "received", label: "Received", value: (p) => p.received, largest: true, text: (p) => (p.received === null ? "" : bytes(p.received)) },
  { id: "changed", label: "Changed", value: (p) => p.changed, largest: true },
  { id: "reason", label: "Reason", value: (p) => p.reason, text: (p) => p.reason },
  { id: "programmed", label: "Kernel has", value: (p) => p.kinds, text: (p) => p.kinds },
];

// isUnknown reports whether a value is one that is not known. Peers without it come last.
const isUnknown = (v) => v === null || v === "" || Number.isNaN(v);

// compare returns how two values are sorted.
function compare(a, b, down) {
  if (isUnknown(a) || isUnknown(b)) return isUnknown(a) - isUnknown(b);
  return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
}

// Row is a row of the table, which shows one peer after another.
class Row {
  constructor(opened) {
    this.peer = null;
    this.cells = {};
    this.element = element("tr", { role: "row" });
    for (const column of COLUMNS) {
      const cell = element("td", { role: "cell", class: column.id });
      this.cells[column.id] = cell;
      this.element.append(cell);
    }
    this.button = element("button", { type: "button", class: "mono" });
    this.button.addEventListener("click", () => opened(this.peer));
    this.cells.subnet.append(this.button);
    this.changed = since(null, "", " ago");
    this.cells.changed.append(this.changed);
  }

  show(peer, index) {
    this.element.setAttribute("aria-rowindex", index + 2);
    if (peer === this.peer) return;
    if (peer.state !== this.peer?.state) {
      this.cells.state.replaceChildren(shape(peer.state), element("span", {}, peer.state.id));
    }
    this.peer = peer;
    setText(this.button, peer.subnet);
    setSince(this.changed, peer.changed, "", " ago");
    for (const { id, text } of COLUMNS) {
      if (text) setText(this.cells[id], text(peer));
    }
    this.cells.reason.title = peer.reason;
    this.cells.programmed.title = peer.programmed;
  }
}

// Table shows the peers that a filter selects, sorted.
class Table {
  // constructor takes functions: opened is called with a peer whose details are wanted, filtered
  // when the filter has changed.
  constructor(opened, filtered) {
    this.opened = opened;
    this.filtered = filtered;
    this.table = byID("table");
    this.body = byID("rows");
    this.rows = new Map(); // by index
    this.shown = [];
    this.sort = { column: COLUMNS[0], down: false };
    this.filter = new Filter("", "");
    this.above = element("tr", { class: "space", "aria-hidden": "true" });
    this.below = element("tr", { class: "space", "aria-hidden": "true" });
    this.body.append(this.above, this.below);
    this.makeHeads();
    this.makeTools();
    this.makeLegend();
    for (const event of ["scroll", "resize"]) window.addEventListener(event, () => this.scrolled(), { passive: true });
  }

  makeHeads() {
    for (const role of [[this.table, "table"], [this.body, "rowgroup"], [byID("heads").parentElement, "rowgroup"], [byID("heads"), "row"]]) role[0].setAttribute("role", role[1]);
    this.heads = new Map();
    for (const column of COLUMNS) {
      const button = element("button", { type: "button" }, column.label, element("span", { class: "arrow", "aria-hidden": "true" }));
      const head = element("th", { role: "columnheader", scope: "col", class: column.id }, button);
      button.addEventListener("click", () => this.sortBy(column, this.sort.column === column ? !this.sort.down : column.largest));
      this.heads.set(column, head);
      byID("heads").append(head);
    }
    const select = byID("sort");
    for (const c of COLUMNS) select.append(element("option", { value: c.id }, c.label));
    select.addEventListener("change", () => {
      const column = COLUMNS.find((c) => c.id === select.value);
      this.sortBy(column, column.largest);
    });
    this.markSort();
  }

  makeTools() {
    const [text, state] = [byID("filter-text"), byID("filter-state")];
    state.append(element("option", { value: "" }, "all"), ...STATES.map((s) => element("option", { value: s.id }, s.id)));
    const changed = () => this.setFilter(new Filter(text.value, state.value));
    text.addEventListener("input", changed);
    state.addEventListener("change", changed);
  }

  // makeLegend makes a button for each state, which shows its number, and selects its peers.
  makeLegend() {
    this.legend = new Map();
    for (const state of [...STATES].reverse()) {
      const number = element("span", { class: "number" });
      const button = element("button", { type: "button", title: state.meaning, "aria-pressed": "false" }, shape(state), element("span", {}, state.id), number);
      button.addEventListener("click", () => {
        byID("filter-state").value = this.filter.state === state.id ? "" : state.id;
        this.setFilter(new Filter(byID("filter-text").value, byID("filter-state").value));
      });
      this.legend.set(state, { button, number });
      byID("legend").append(button);
    }
  }

  sortBy(column, down = false) {
    this.sort = { column, down };
    byID("sort").value = column.id;
    this.markSort();
    this.select();
  }

  markSort() {
    for (const [column, head] of this.heads) {
      const by = column === this.sort.column;
      head.setAttribute("aria-sort", by ? (this.sort.down ? "descending" : "ascending") : "none");
      setText(head.querySelector(".arrow"), by ? (this.sort.down ? " ▼" : " ▲") : "");
    }
  }

  setFilter(filter) {
    this.filter = filter;
    this.showLegend();
    this.select();
    this.filtered();
  }

  update(model) {
    this.model = model;
    // Only with the backend udp, traffic with peers is counted.
    this.table.classList.toggle("uncounted", !model.peers.some((p) => p.sent !== null));
    for (const [state, { number }] of this.legend) {
      setText(number, count(model.counts[state.id] ?? 0));
    }
    this.showLegend();
    this.select();
  }

  // showLegend shows the states that peers have, and the one that is selected.
  showLegend() {
    for (const [state, { button }] of this.legend) {
      const selected = state.id === this.filter.state;
      button.setAttribute("aria-pressed", String(selected));
      button.hidden = !selected && state !== STATE.ok && !this.model?.counts[state.id];
    }
  }

  // select selects and sorts the peers that are shown.
  select() {
    if (!this.model) return;
    const { column, down } = this.sort;
    this.shown = this.model.peers.filter((p) => this.filter.matches(p))
      .sort((a, b) => compare(column.value(a), column.value(b), down) || a.key - b.key);
    const [n, all] = [this.shown.length, this.model.peers.length];
    setText(byID("peers-count"), n === all ? plural(all, "peer") : `${count(n)} of ${plural(all, "peer")}`);
    this.table.hidden = n === 0;
    byID("peers-none").hidden = n > 0;
    setText(byID("peers-none"), all === 0 ? "This host knows no other host of the network." : "No peer matches the filter.");
    this.table.setAttribute("aria-rowcount", n + 1);
    this.render();
  }

  scrolled() {
    if (this.waiting || !this.model) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.render();
    });
  }

  // render makes the rows that can be seen, and reuses those that cannot be seen any longer.
  render() {
    const height = parseFloat(getComputedStyle(this.table).getPropertyValue("--row"));
    const top = this.body.getBoundingClientRect().top;
    const n = this.shown.length;
    let [first, last] = [0, n];
    if (n > FEW) {
      first = Math.max(0, Math.min(n, Math.floor(-top / height) - OVERSCAN));
      last = Math.max(first, Math.min(n, Math.ceil((window.innerHeight - top) / height) + OVERSCAN));
    }
    const free = [];
    for (const [index, row] of this.rows) {
      if (index >= first && index < last) continue;
      this.rows.delete(index);
      free.push(row);
    }
    let next = this.above.nextSibling;
    for (let i = first; i < last; i++) {
      let row = this.rows.get(i);
      if (!row) {
        row = free.pop() ?? new Row((p) => this.opened([p]));
        this.rows.set(i, row);
      }
      if (row.element === next) next = next.nextSibling;
      else this.body.insertBefore(row.element, next);
      row.show(this.shown[i], i);
    }
    for (const row of free) row.element.remove();
    this.above.style.height = `${first * height}px`;
    this.below.style.height = `${(n - last) * height}px`;
    refreshAges(this.body, this.model.now());
  }
}
