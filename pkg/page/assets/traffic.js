// The traffic of this host during the last minutes: sent above the line, received below it.

class Traffic {
  constructor(palette) {
    this.canvas = byID("traffic-canvas");
    this.palette = palette;
    this.traffic = null;
    this.at = null; // index of the rate under the pointer
    this.canvas.addEventListener("pointermove", (e) => {
      const box = this.canvas.getBoundingClientRect();
      this.point((e.clientX - box.left) / box.width);
    });
    this.canvas.addEventListener("pointerleave", () => this.point(null));
  }

  update(traffic) {
    this.traffic = traffic;
    this.draw();
  }

  point(share) {
    const last = SLOTS - 1;
    this.at = share === null ? null : Math.max(0, Math.min(last, Math.round(share * last)));
    this.draw();
  }

  draw() {
    const t = this.traffic;
    if (!t) return;
    const there = t.device !== "" || t.rates.some((r) => r);
    this.canvas.hidden = byID("rates").hidden = !there;
    byID("traffic-none").hidden = there;
    if (!there) {
      setText(byID("traffic-none"), "There is no device of the overlay whose traffic could be counted.");
      return;
    }
    // The latest rate is on the right, whatever the number of rates.
    const rates = [...Array(Math.max(0, SLOTS - t.rates.length)).fill(null), ...t.rates].slice(-SLOTS);
    this.write(rates, t.interval_seconds);
    const { context: c, width, height } = canvasOf(this.canvas);
    if (width === 0) return;
    const scale = niceScale(Math.max(125, ...rates.flatMap((r) => r ?? [])));
    const [middle, half] = [Math.round(height / 2), height / 2 - 10];
    const x = (i) => (i / (SLOTS - 1)) * width;
    this.drawGrid(c, width, middle, half, scale, t.interval_seconds);
    for (const [way, name, sign] of [[1, "sent", -1], [0, "received", 1]]) {
      this.drawArea(c, rates, x, (r) => middle + (sign * half * r[way]) / scale, middle, this.palette.get(name));
    }
    c.strokeStyle = this.palette.get("muted");
    c.lineWidth = 1;
    c.beginPath();
    c.moveTo(0, middle);
    c.lineTo(width, middle);
    if (this.at !== null) {
      c.moveTo(x(this.at), middle - half);
      c.lineTo(x(this.at), middle + half);
    }
    c.stroke();
  }

  // write writes the rates under the pointer, or else the latest ones.
  write(rates, interval) {
    const index = this.at ?? SLOTS - 1;
    const rate = rates[index];
    setText(byID("rate-received"), rate ? bits(rate[0]) : "unknown");
    setText(byID("rate-sent"), rate ? bits(rate[1]) : "unknown");
    const ago = (SLOTS - 1 - index) * interval * 1000;
    setText(byID("rate-at"), ago === 0 ? "" : `${span(ago)} ago`);
    const latest = rates.at(-1);
    this.canvas.setAttribute("aria-label", latest ? `Traffic of the last minutes; now ${bits(latest[0])} received, ${bits(latest[1])} sent` : "Traffic of the last minutes; unknown now");
  }

  drawGrid(c, width, middle, half, scale, interval) {
    c.strokeStyle = this.palette.get("line");
    c.lineWidth = 1;
    c.beginPath();
    for (const part of [-1, -0.5, 0.5, 1]) {
      const y = Math.round(middle + part * half) + 0.5;
      c.moveTo(0, y);
      c.lineTo(width, y);
    }
    c.stroke();
    c.font = `11px ${this.palette.get("sans")}`;
    c.fillStyle = this.palette.get("muted");
    c.textBaseline = "top";
    c.textAlign = "left";
    c.fillText(bits(scale), 2, middle - half + 3);
    c.textBaseline = "bottom";
    c.fillText(bits(scale), 2, middle + half - 3);
    c.textAlign = "right";
    c.fillText(`last ${span(SLOTS * interval * 1000)}`, width - 2, middle + half - 3);
  }

  drawArea(c, rates, x, y, middle, colour) {
    c.fillStyle = c.strokeStyle = colour;
    c.lineWidth = 1.5;
    for (let i = 0; i < rates.length; i++) {
      if (!rates[i]) continue;
      const first = i;
      const line = new Path2D();
      line.moveTo(x(i), y(rates[i]));
      while (i + 1 < rates.length && rates[i + 1]) line.lineTo(x(++i), y(rates[i]));
      const area = new Path2D(line);
      area.lineTo(x(i), middle);
      area.lineTo(x(first), middle);
      c.globalAlpha = 0.25;
      c.fill(area);
      c.globalAlpha = 1;
      c.stroke(line);
    }
  }
}

// SLOTS is the number of rates that the chart shows.
const SLOTS = 150;

// niceScale returns the next number of bytes per second that is 1, 2 or 5 times a power of ten in
// bits.
function niceScale(bytes) {
  const power = 10 ** Math.floor(Math.log10(bytes * 8));
  return ([1, 2, 5].find((n) => n * power >= bytes * 8) ?? 10) * power / 8;
}
