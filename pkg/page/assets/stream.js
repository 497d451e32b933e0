// The stream of events, and what becomes of it: a connection that is lost is made again.

// SILENCE is the time without an event after which a connection counts as lost. The daemon sends
// one every five seconds at least.
const SILENCE = 15_000;
const RETRY = 3_000;
// HIDDEN is the time after which a page that nobody sees does not keep the daemon busy.
const HIDDEN = 10 * 60_000;

class Stream {
  // constructor takes functions: received is called with each event, and changed with the phase of
  // the connection: "connecting", "live", "lost", "full" if the daemon has too many watchers, or
  // "paused" while the page is not visible.
  constructor(received, changed) {
    this.received = received;
    this.changed = changed;
    this.phase = "connecting";
    this.source = null;
    this.timers = {};
    document.addEventListener("visibilitychange", () => this.visibility());
    window.addEventListener("pageshow", (e) => { if (e.persisted) this.open(); });
    window.addEventListener("pagehide", () => this.close());
  }

  open() {
    this.close();
    const source = new EventSource("events");
    this.source = source;
    source.onmessage = (m) => {
      this.expect();
      this.enter("live");
      this.received(JSON.parse(m.data));
    };
    source.onerror = () => this.failed(source);
    this.expect();
  }

  close() {
    this.source?.close();
    this.source = null;
    this.cancel("silence");
    this.cancel("retry");
  }

  enter(phase) {
    if (phase === this.phase) return;
    this.phase = phase;
    this.changed(phase);
  }

  // expect waits for the next event, and for the first one as well.
  expect() {
    this.after("silence", SILENCE, () => {
      this.enter("lost");
      this.open();
    });
  }

  // failed finds out why a connection has ended. After most errors the browser connects again.
  async failed(source) {
    if (source !== this.source) return;
    let phase = "lost";
    if (source.readyState === EventSource.CLOSED) {
      this.close();
      this.after("retry", RETRY, () => this.open());
      const answer = await fetch("events", { method: "HEAD", cache: "no-store" }).catch(() => null);
      if (answer?.status === 503) phase = "full";
    }
    if (this.source === null || this.source === source) this.enter(phase);
  }

  visibility() {
    if (document.hidden) {
      this.after("hidden", HIDDEN, () => {
        this.close();
        this.enter("paused");
      });
      return;
    }
    this.cancel("hidden");
    if (this.phase === "paused") {
      this.enter("connecting");
      this.open();
    }
  }

  after(name, ms, f) {
    this.cancel(name);
    this.timers[name] = setTimeout(f, ms);
  }

  cancel(name) { clearTimeout(this.timers[name]); }
}
