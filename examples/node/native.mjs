// node native.mjs MODEL IMAGES LIBRARY: as run.mjs, with the runtime at LIBRARY.
import { readFile } from "node:fs/promises";
import { Session } from "./onnxruntime.mjs";

const [model, images, library] = process.argv.slice(2);
const bytes = await readFile(images);
const data = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);

const session = new Session(model, { library });
const results = await session.run({ image: { type: "float32", data, dims: [data.length / 1024, 1, 32, 32] } });
console.log(Array.from(results.class.data, Number).join(" "));
session.close();
