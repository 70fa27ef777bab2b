// Images from bytes. Colours are those of Lupton et al. (2004): one stretch of the mean brightness for all three bands.
// Where a pixel is not brighter than the noise its colour says nothing, and is drawn weakly.

const STEPS = 254;
const COLOURLESS = 4; // at this brightness, in units of the noise, half of the colour is drawn
const DEFAULTS = { stretch: 12, brightness: 1, black: 0.5, colour: 1, band: "", alike: false, inverted: false, smooth: true };

class Drawer {
  // stamps: how codes become pixels; see deeplense/candidates/stamps.py.
  constructor(stamps) {
    this.stamps = stamps;
    this.chunks = [];
    this.size = stamps.width * stamps.height;
    const white = [...stamps.white].sort((one, other) => one - other);
    this.commonWhite = white[Math.floor(white.length / 2)] || 1;
    this.tables = new Map();
  }

  has(number) {
    return Boolean(this.chunks[this.chunkOf(number)]);
  }

  chunkOf(number) {
    return Math.floor(number / this.stamps.chunk);
  }

  take(chunk, text) {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let k = 0; k < raw.length; k += 1) bytes[k] = raw.charCodeAt(k);
    this.chunks[chunk] = bytes;
  }

  // For each band the brightness of each code above the background, in units of a usual object.
  levels(number) {
    const { noise, low, high, scale, planes, linear } = this.stamps;
    return planes.map((band) => {
      const table = new Float32Array(256);
      const [from, to, grain] = [low[number][band], high[number][band], noise[number][band]];
      for (let code = 1; code < 256; code += 1) {
        const value = from + ((code - 1) * (to - from)) / STEPS;
        table[code] = ((linear ? value : Math.sinh(value)) * grain) / scale[band];
      }
      return table;
    });
  }

  // Noise of the mean brightness, in units of a usual object; 0 for images that are stretched already.
  grain(number) {
    const { noise, scale, planes, linear } = this.stamps;
    return linear ? 0 : Math.hypot(...planes.map((band) => noise[number][band] / scale[band])) / 3;
  }

  draw(canvas, number, look) {
    const { width, height, chunk, bands } = this.stamps;
    const bytes = this.chunks[this.chunkOf(number)];
    if (!bytes) return false;
    const start = (number % chunk) * bands * this.size;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    this.paint(image.data, bytes, start, this.levels(number), this.tone(number, look), look);
    context.putImageData(image, 0, 0);
    canvas.classList.toggle("pixels", !look.smooth);
    return true;
  }

  // What a brightness is drawn with: 0 is black, 1 white.
  tone(number, look) {
    const white = (look.alike ? this.commonWhite : this.stamps.white[number]) / look.brightness;
    const grain = this.grain(number);
    const black = look.black * (grain || 0.1);
    const norm = Math.asinh(look.stretch);
    const curve = look.stretch > 0 ? (x) => Math.asinh(look.stretch * x) / norm : (x) => x;
    return { black, faint: (COLOURLESS * grain) ** 2, curve: (level) => (level > 0 ? curve(level / white) : 0) };
  }

  paint(out, bytes, start, levels, tone, look) {
    const { size } = this;
    const [toRed, toGreen, toBlue] = this.stamps.planes.map((plane) => start + plane * size);
    const single = { red: 0, green: 1, blue: 2 }[look.band];
    const sign = look.inverted ? -1 : 1;
    const zero = look.inverted ? 255 : 0;
    for (let k = 0; k < size; k += 1) {
      const place = 4 * k;
      const codes = [bytes[toRed + k], bytes[toGreen + k], bytes[toBlue + k]];
      out[place + 3] = codes[0] || codes[1] || codes[2] ? 255 : 0;
      if (single !== undefined) {
        const level = levels[single][codes[single]];
        const grey = zero + sign * 255 * Math.min(1, tone.curve(level - tone.black));
        out[place] = out[place + 1] = out[place + 2] = grey;
        continue;
      }
      let red = levels[0][codes[0]] - tone.black;
      let green = levels[1][codes[1]] - tone.black;
      let blue = levels[2][codes[2]] - tone.black;
      const mean = (red + green + blue) / 3;
      const shown = tone.curve(mean);
      if (shown > 0) {
        const colour = look.colour / (1 + tone.faint / mean ** 2);
        red = shown * (1 + colour * (red / mean - 1));
        green = shown * (1 + colour * (green / mean - 1));
        blue = shown * (1 + colour * (blue / mean - 1));
        const most = Math.max(red, green, blue, 1);
        red /= most;
        green /= most;
        blue /= most;
      } else red = green = blue = 0;
      out[place] = zero + sign * 255 * red;
      out[place + 1] = zero + sign * 255 * green;
      out[place + 2] = zero + sign * 255 * blue;
    }
  }
}
