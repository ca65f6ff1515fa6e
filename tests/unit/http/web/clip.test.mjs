import assert from "node:assert/strict";
import test from "node:test";

const modules = process.env.MODULES;
const { Clip, mixed, wavOf } = await import(new URL("clip.js", modules));

const RATE_HZ = 8000;

test("a WAV file has its samples, and states their number and rate", async () => {
  const view = new DataView(await wavOf(Float32Array.of(0, 0.5, -1, 2), RATE_HZ).arrayBuffer());
  const text = (at) => String.fromCharCode(...[0, 1, 2, 3].map((i) => view.getUint8(at + i)));
  assert.deepEqual([0, 8, 12, 36].map(text), ["RIFF", "WAVE", "fmt ", "data"]);
  assert.deepEqual([4, 24, 28, 40].map((at) => view.getUint32(at, true)), [44, RATE_HZ, 2 * RATE_HZ, 8]);
  assert.deepEqual([44, 46, 48, 50].map((at) => view.getInt16(at, true)), [0, 16384, -32767, 32767]);
});

test("silence around what is said is found, with a breath left", () => {
  const samples = new Float32Array(4 * RATE_HZ).fill(0.001);
  samples.fill(0.5, RATE_HZ, 2 * RATE_HZ);
  const [fromS, uptoS] = new Clip(samples, RATE_HZ).sounding;
  assert.ok(Math.abs(fromS - 0.85) < 1e-3 && Math.abs(uptoS - 2.3) < 1e-3, `${fromS} to ${uptoS}`);
  assert.deepEqual(new Clip(new Float32Array(RATE_HZ), RATE_HZ).sounding, [0, 1]);
  assert.equal(new Clip(samples, RATE_HZ).between(1, 1.5).length, RATE_HZ / 2);
});

test("two channels become one", () => {
  const channels = [Float32Array.of(1, 0), Float32Array.of(0, -1)];
  const audio = (count) => ({ numberOfChannels: count, getChannelData: (i) => channels[i] });
  assert.deepEqual([...mixed(audio(2))], [0.5, -0.5]);
  assert.deepEqual([...mixed(audio(1))], [1, 0]);
});
