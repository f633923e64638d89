// Sessions through ONNX Runtime's C API, with a library of operators, which onnxruntime-node cannot register. The ONNX
// Runtime is the one that onnxruntime-node brings. Tensors are { type, data, dims } of the types below, on the CPU.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import koffi from "koffi";

const TYPES = { float32: [1, Float32Array], int32: [6, Int32Array], int64: [7, BigInt64Array], bool: [9, Uint8Array] };
const API_VERSION = 17; // ONNX Runtime 1.17, and all that came later

// Functions of OrtApi by their place in it. It is only ever appended to: a place never changes.
const path = process.platform === "win32" ? "str16" : "str";
const ORT_API = {
  CreateEnv: [3, ["int", "str", "_Out_ void **"]],
  CreateSession: [7, ["void *", path, "void *", "_Out_ void **"]],
  Run: [9, ["void *", "void *", "str *", "void *", "size_t", "str *", "size_t", "void *"]],
  CreateSessionOptions: [10, ["_Out_ void **"]],
  SetIntraOpNumThreads: [24, ["void *", "int"]],
  SessionGetOutputCount: [31, ["void *", "_Out_ size_t *"]],
  SessionGetOutputName: [37, ["void *", "size_t", "void *", "_Out_ str *"]],
  CreateTensorWithDataAsOrtValue: [49, ["void *", "void *", "size_t", "void *", "size_t", "int", "_Out_ void **"]],
  GetTensorMutableData: [51, ["void *", "_Out_ void **"]],
  GetTensorElementType: [60, ["void *", "_Out_ int *"]],
  GetDimensionsCount: [61, ["void *", "_Out_ size_t *"]],
  GetDimensions: [62, ["void *", "void *", "size_t"]],
  GetTensorTypeAndShape: [65, ["void *", "_Out_ void **"]],
  CreateCpuMemoryInfo: [69, ["int", "int", "_Out_ void **"]],
  GetAllocatorWithDefaultOptions: [78, ["_Out_ void **"]],
  RegisterCustomOpsLibrary_V2: [228, ["void *", path]],
};
const RELEASE = { Status: 93, Session: 95, Value: 96, TensorTypeAndShapeInfo: 99, SessionOptions: 100 };

function findLibrary() {
  const root = dirname(dirname(createRequire(import.meta.url).resolve("onnxruntime-node")));
  const folder = join(root, "bin", "napi-v6", process.platform, process.arch);
  const names = ["libonnxruntime.so.1", "libonnxruntime.1.dylib", "onnxruntime.dll"].map((name) => join(folder, name));
  return names.find(existsSync) ?? names[0];
}

function loadApi() {
  const base = koffi.decode(koffi.load(findLibrary()).func("OrtGetApiBase", "void *", [])(), "void *");
  const table = koffi.call(base, koffi.proto("void *", ["uint32_t"]), API_VERSION);
  const at = (place, result, types) => {
    const address = koffi.decode(table, place * koffi.sizeof("void *"), "void *");
    return koffi.decode(address, koffi.proto(result, types));
  };
  const release = Object.fromEntries(
    Object.entries(RELEASE).map(([name, place]) => [name, at(place, "void", ["void *"])]),
  );
  const message = at(2, "str", ["void *"]);
  const check = (status) => {
    if (status === null) return;
    const text = message(status);
    release.Status(status);
    throw new Error(text);
  };
  const api = { release };
  for (const [name, [place, types]] of Object.entries(ORT_API)) {
    const call = at(place, "void *", types);
    // The value that a call gives comes last, by address.
    const gives = String(types.at(-1)).startsWith("_Out_");
    api[name] = (...args) => {
      const given = [null];
      check(gives ? call(...args, given) : call(...args));
      return given[0];
    };
    api[name].async = (...args) =>
      new Promise((resolve, reject) => {
        call.async(...args, (error, status) => {
          try {
            if (error) throw error;
            check(status);
            resolve();
          } catch (problem) {
            reject(problem);
          }
        });
      });
  }
  return api;
}

const api = loadApi();
const env = api.CreateEnv(3, "node");
const memory = api.CreateCpuMemoryInfo(1, 0);

export class Session {
  #session;
  #outputs;

  // model: a file. library: the runtime's file. threads: 0 for all cores.
  constructor(model, { library, threads = 0 } = {}) {
    const options = api.CreateSessionOptions();
    try {
      api.SetIntraOpNumThreads(options, threads);
      if (library) api.RegisterCustomOpsLibrary_V2(options, library);
      this.#session = api.CreateSession(env, model, options);
    } finally {
      api.release.SessionOptions(options);
    }
    const allocator = api.GetAllocatorWithDefaultOptions();
    const count = Number(api.SessionGetOutputCount(this.#session));
    this.#outputs = Array.from({ length: count }, (_, i) => api.SessionGetOutputName(this.#session, i, allocator));
  }

  // Tensors by their names in, tensors by their names out. Runs beside the event loop.
  async run(feeds) {
    const names = Object.keys(feeds);
    const shapes = names.map((name) => BigInt64Array.from(feeds[name].dims, BigInt));
    const inputs = new BigUint64Array(names.length);
    const outputs = new BigUint64Array(this.#outputs.length);
    try {
      names.forEach((name, i) => {
        const { type, data, dims } = feeds[name];
        const [code] = TYPES[type];
        inputs[i] = api.CreateTensorWithDataAsOrtValue(
          memory, data, data.byteLength, shapes[i], dims.length, code);
      });
      await api.Run.async(
        this.#session, null, names, inputs, names.length, this.#outputs, outputs.length, outputs);
      return Object.fromEntries(this.#outputs.map((name, i) => [name, read(outputs[i])]));
    } finally {
      for (const value of [...inputs, ...outputs]) if (value) api.release.Value(value);
    }
  }

  close() {
    api.release.Session(this.#session);
    this.#session = null;
  }
}

function read(value) {
  const info = api.GetTensorTypeAndShape(value);
  try {
    const code = api.GetTensorElementType(info);
    const [type, [, Typed]] = Object.entries(TYPES).find(([, [known]]) => known === code);
    const dims = new BigInt64Array(Number(api.GetDimensionsCount(info)));
    api.GetDimensions(info, dims, dims.length);
    const length = dims.reduce((product, size) => product * Number(size), 1);
    const bytes = koffi.view(api.GetTensorMutableData(value), length * Typed.BYTES_PER_ELEMENT);
    return { type, data: new Typed(bytes.slice(0)), dims: Array.from(dims, Number) };
  } finally {
    api.release.TensorTypeAndShapeInfo(info);
  }
}
