// node run.mjs MODEL IMAGES: classifies raw float32 images of 32 x 32, without the runtime.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";

const [model, images] = process.argv.slice(2);
const bytes = await readFile(images);
const pixels = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);

const session = await ort.InferenceSession.create(model);
const image = new ort.Tensor("float32", pixels, [pixels.length / 1024, 1, 32, 32]);
const results = await session.run({ image });
console.log(Array.from(results.class.data, Number).join(" "));
