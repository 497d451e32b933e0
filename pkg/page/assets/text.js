// Text and elements. Everything that the daemon sends becomes text, and never markup: it may contain
// what other hosts have written.

const MAX_TEXT = 1000;

// clean returns a value as text in which characters that are invisible, or change the order or the
// place of others, are escaped.
function clean(value) {
  if (typeof value !== "string") return "";
  const text = value.length > MAX_TEXT ? value.slice(0, MAX_TEXT) + "…" : value;
  return text.replace(/[\p{C}\p{Z}\p{M}]/gu, (c) => (c === " " ? c : `\\u{${c.codePointAt(0).toString(16)}}`));
}

// number returns a finite number, or null if it is unknown.
function number(value) { return typeof value === "number" && Number.isFinite(value) ? value : null; }

// time returns a time in milliseconds, or null if it is unknown.
function time(value) {
  const t = typeof value === "string" ? Date.parse(value) : NaN;
  return Number.isNaN(t) ? null : t;
}

// span returns a duration in its two largest units, as "flanneld status" does.
function span(ms) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let seconds = Math.max(0, Math.floor(ms / 1000));
  let i = units.findIndex(([, of]) => seconds >= of);
  if (i < 0) i = units.length - 1;
  const parts = [];
  for (const [name, of] of units.slice(i, i + 2)) {
    const n = Math.floor(seconds / of);
    seconds %= of;
    if (n > 0 || parts.length === 0) parts.push(`${n} ${name}`);
  }
  return parts.join(" ");
}

// clock returns the time of day of a time.
function clock(t) { return new Date(t).toLocaleTimeString([], { hour12: false }); }

// digits returns a number with at most three significant digits, without an exponent.
function digits(n) { return n.toLocaleString("en", { maximumSignificantDigits: 3 }); }

// bits returns a number of bytes per second in bits per second.
function bits(bytes) {
  let n = bytes * 8;
  for (const unit of ["bit/s", "kbit/s", "Mbit/s"]) {
    if (n < 999.5) return `${unit === "bit/s" ? Math.round(n) : digits(n)} ${unit}`;
    n /= 1000;
  }
  return `${digits(n)} Gbit/s`;
}

// bytes returns a number of bytes.
function bytes(n) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (n < 999.5) return `${unit === "B" ? n : digits(n)} ${unit}`;
    n /= 1000;
  }
  return `${digits(n)} TB`;
}

const milliseconds = (n) => (n === null ? "" : `${n.toFixed(n < 9.995 ? 2 : n < 99.95 ? 1 : 0)} ms`);
const percent = (n) => (n === null ? "" : `${Math.round(n * 100)} %`);
const count = (n) => n.toLocaleString("en");
const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

const byID = (id) => document.getElementById(id);

// element returns an element with attributes and children, which are elements or text.
function element(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  e.append(...children);
  return e;
}

// setText sets the text of an element, if it is another one.
function setText(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

// shape returns the shape of a state.
function shape(state) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "-8 -8 16 16");
  svg.setAttribute("class", `shape ${state.id}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", state.path);
  svg.append(path);
  return svg;
}

// since returns an element with the age of a time, which is kept up to date by refreshAges.
function since(t, before = "", after = "") {
  const e = element("time");
  setSince(e, t, before, after);
  return e;
}

function setSince(e, t, before = "", after = "") {
  const known = t !== null;
  if (known) e.dateTime = new Date(t).toISOString();
  e.title = known ? new Date(t).toLocaleString([], { hour12: false }) : "";
  Object.assign(e.dataset, { since: known ? t : "", before, after });
}

// refreshAges writes the ages of times below an element.
function refreshAges(root, now) {
  for (const e of root.querySelectorAll("time[data-since]")) {
    const { since, before, after } = e.dataset;
    setText(e, since === "" ? "" : before + span(now - Number(since)) + after);
  }
}
