// Shows one film on a canvas: zoom, pan, window and level, inverted, with a heat map over it.

const FULL = 256;

export class Viewer {
  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.onChange = onChange;
    this.drag = "window";
    this.film = null;
    this.heat = null;
    this.showHeat = false;
    this.opacity = 0.6;
    this.reset();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(film) {
    this.film = film;
    this.heat = null;
    this.source = null;
    if (film) {
      const { width, height } = film.bitmap;
      const plain = new OffscreenCanvas(width, height);
      const context = plain.getContext("2d", { willReadFrequently: true });
      context.drawImage(film.bitmap, 0, 0);
      this.source = context.getImageData(0, 0, width, height);
      this.shown = plain;
    }
    this.repaint();
  }

  reset() {
    Object.assign(this, { zoom: 1, x: 0, y: 0, window: FULL, level: FULL / 2 });
    this.inverted = false;
    this.repaint();
  }

  // Applies window and level to the pixels, then draws.
  repaint() {
    if (this.source) {
      const { width, height, data } = this.source;
      const table = new Uint8ClampedArray(FULL);
      for (let value = 0; value < FULL; value += 1) {
        const gray = ((value - this.level) / this.window + 0.5) * 255;
        table[value] = this.inverted ? 255 - gray : gray;
      }
      const made = new ImageData(width, height);
      for (let at = 0; at < data.length; at += 4) {
        made.data[at] = made.data[at + 1] = made.data[at + 2] = table[data[at]];
        made.data[at + 3] = 255;
      }
      this.shown.getContext("2d").putImageData(made, 0, 0);
    }
    this.draw();
    this.onChange(this);
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.source) return;
    const fit = Math.min(this.canvas.width / this.film.width, this.canvas.height / this.film.height) * this.zoom;
    const width = this.film.width * fit;
    const height = this.film.height * fit;
    const left = (this.canvas.width - width) / 2 + this.x * ratio;
    const top = (this.canvas.height - height) / 2 + this.y * ratio;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.shown, left, top, width, height);
    if (this.showHeat && this.heat) {
      context.globalAlpha = this.opacity;
      context.drawImage(this.heat, left, top, width, height);
      context.globalAlpha = 1;
    }
  }

  scale(factor) {
    this.zoom = Math.min(20, Math.max(0.2, this.zoom * factor));
    this.draw();
    this.onChange(this);
  }

  move(x, y) {
    this.x += x;
    this.y += y;
    this.draw();
  }

  adjust(level, width) {
    this.level = Math.min(FULL, Math.max(0, this.level + level));
    this.window = Math.min(4 * FULL, Math.max(2, this.window + width));
    this.repaint();
  }

  invert() {
    this.inverted = !this.inverted;
    this.repaint();
  }

  listen() {
    const pointers = new Map();
    let apart = 0;
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
      apart = 0;
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      pointers.set(event.pointerId, event);
      const [x, y] = [event.clientX - before.clientX, event.clientY - before.clientY];
      if (pointers.size === 2) {
        const [one, two] = [...pointers.values()];
        const now = Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY);
        if (apart) this.scale(now / apart);
        apart = now;
      } else if (this.drag === "pan" || event.shiftKey || event.buttons === 4) {
        this.move(x, y);
      } else {
        this.adjust(-y / 2, x);
      }
    });
    for (const name of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
    }
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.scale(event.deltaY < 0 ? 1.15 : 1 / 1.15);
    }, { passive: false });
    this.canvas.addEventListener("dblclick", () => this.reset());
    this.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-30, 0], ArrowRight: [30, 0], ArrowUp: [0, -30], ArrowDown: [0, 30] }[event.key];
      if (!step) return;
      event.preventDefault();
      this.move(...step);
    });
  }
}
