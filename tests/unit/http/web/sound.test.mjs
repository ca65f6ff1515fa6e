import assert from "node:assert/strict";
import test from "node:test";

const modules = process.env.MODULES;
const { PcmReader, joined, withSizes } = await import(new URL("pcm.js", modules));
const { Analyser, BANDS, fft, melFilters } = await import(new URL("spectrum.js", modules));

const RATE_HZ = 24000;
const tone = (hz, seconds, loud = 1) => Float32Array.from({ length: seconds * RATE_HZ }, (_, i) => loud * Math.sin((2 * Math.PI * hz * i) / RATE_HZ));

test("samples are the same however the body is cut", () => {
  const bytes = Uint8Array.from({ length: 44 + 2001 }, (_, i) => (i * 37) % 256);
  const whole = new PcmReader(true).read(bytes);
  assert.equal(whole.length, 1000);
  for (const size of [1, 3, 43, 45, 500]) {
    const reader = new PcmReader(true);
    const parts = [];
    for (let at = 0; at < bytes.length; at += size) parts.push(reader.read(bytes.subarray(at, at + size)));
    assert.deepEqual(joined(parts, Float32Array), whole);
  }
});

test("full scale is -1, and a piece may start anywhere in its buffer", () => {
  const bytes = Uint8Array.of(9, 0x00, 0x80, 0xff, 0x7f).subarray(1);
  assert.deepEqual([...new PcmReader(false).read(bytes)], [-1, 32767 / 32768]);
});

test("a saved WAV states its sizes", () => {
  const file = new Uint8Array(44 + 100).fill(0xff);
  const view = new DataView(withSizes(file).buffer);
  assert.equal(view.getUint32(4, true), 136);
  assert.equal(view.getUint32(40, true), 100);
  assert.equal(file[4], 0xff);
});

test("the transform finds the frequencies of a sum", () => {
  const real = Float32Array.from({ length: 64 }, (_, i) => Math.cos((2 * Math.PI * 5 * i) / 64) + 0.5 * Math.sin((2 * Math.PI * 9 * i) / 64));
  const imaginary = new Float32Array(64);
  fft(real, imaginary);
  const sizes = [...real].map((value, i) => Math.hypot(value, imaginary[i]));
  assert.ok(Math.abs(sizes[5] - 32) < 1e-3);
  assert.ok(Math.abs(sizes[9] - 16) < 1e-3);
  assert.ok(sizes.every((size, i) => [5, 9, 55, 59].includes(i) || size < 1e-3));
});

test("each band hears something, and higher ones higher tones", () => {
  assert.ok(melFilters(RATE_HZ).every(([, weights]) => weights.some((weight) => weight > 0)));
  const loudest = [200, 800, 3000, 9000].map((hz) => {
    const { levels } = new Analyser(RATE_HZ).push(tone(hz, 0.1)).at(-1);
    return levels.indexOf(Math.max(...levels));
  });
  assert.deepEqual(loudest, loudest.toSorted((a, b) => a - b));
  assert.equal(new Set(loudest).size, 4);
});

test("levels follow loudness, and silence is the lowest", () => {
  const level = (loud) => Math.max(...new Analyser(RATE_HZ).push(tone(1000, 0.1, loud)).at(-1).levels);
  assert.ok(level(1) > 240);
  assert.ok(Math.abs(level(1) - level(0.1) - (255 * 20) / 80) <= 1);
  assert.equal(level(0), 0);
});

test("columns are the same however the samples come", () => {
  const sound = tone(440, 0.2, 0.5);
  const whole = new Analyser(RATE_HZ).push(sound);
  assert.equal(whole.length, 20);
  assert.equal(whole[0].levels.length, BANDS);
  const analyser = new Analyser(RATE_HZ);
  const parts = [];
  for (let at = 0; at < sound.length; at += 777) parts.push(...analyser.push(sound.slice(at, at + 777)));
  assert.deepEqual(parts, whole);
});
