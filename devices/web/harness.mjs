// Runs one artifact in one web runtime for the host that drives this page.
//
// open(...) loads the artifact and returns its description by the runtime. It also defines
// globalThis.renormliteRun, which takes and returns tensors as {name, dtype, shape, data}, with data
// in base64.

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  // Without Float16Array in the browser, the runtime takes the bits.
  float16: globalThis.Float16Array ?? Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  int64: BigInt64Array,
  bool: Uint8Array,
};

function decode({data, dtype}) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  return new ARRAYS[dtype](bytes.buffer);
}

function encode(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  // In parts, since the number of arguments of a call is limited.
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

async function openLiteRt({threads, accelerator}) {
  const litert = await import("@litertjs/core");
  await litert.loadLiteRt("/packages/@litertjs/core/wasm/", {threads: threads > 1});
  const begin = performance.now();
  const model = await litert.loadAndCompile("/artifact", {
    accelerator,
    cpuOptions: {numThreads: threads},
  });
  const load_ms = performance.now() - begin;
  const describe = (details) =>
    details.map(({name, dtype, shape}) => ({name, dtype, shape: Array.from(shape)}));
  const inputs = describe(model.getInputDetails());
  const outputs = describe(model.getOutputDetails());

  async function run(values) {
    const tensors = values.map((tensor) => new litert.Tensor(decode(tensor), tensor.shape));
    const start = performance.now();
    const results = await model.run(tensors);
    // On a GPU the work is complete only when its result can be read.
    const arrays = await Promise.all(results.map((result) => result.data()));
    const elapsed_ms = performance.now() - start;
    const given = results.map((result, index) => ({
      name: outputs[index].name,
      dtype: result.type.dtype,
      shape: Array.from(result.type.layout.dimensions),
      data: encode(arrays[index]),
    }));
    [...tensors, ...results].forEach((tensor) => tensor.delete());
    return {outputs: given, elapsed_ms};
  }
  return {inputs, outputs, load_ms, run, accelerated: model.isFullyAccelerated};
}

async function openOnnx({threads}) {
  const ort = await import("onnxruntime-web");
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = "/packages/onnxruntime-web/dist/";
  const begin = performance.now();
  const session = await ort.InferenceSession.create("/artifact", {executionProviders: ["wasm"]});
  const load_ms = performance.now() - begin;
  const describe = (metadata) =>
    metadata.map(({name, type, shape}) => ({
      name,
      dtype: type,
      shape: shape.map((size) => (typeof size === "number" ? size : -1)),
    }));

  async function run(values) {
    const feeds = Object.fromEntries(
      values.map((tensor) => [
        tensor.name,
        new ort.Tensor(tensor.dtype, decode(tensor), tensor.shape),
      ]),
    );
    const start = performance.now();
    const results = await session.run(feeds);
    const elapsed_ms = performance.now() - start;
    const given = session.outputNames.map((name) => ({
      name,
      dtype: results[name].type,
      shape: Array.from(results[name].dims),
      data: encode(results[name].data),
    }));
    return {outputs: given, elapsed_ms};
  }
  return {
    inputs: describe(session.inputMetadata),
    outputs: describe(session.outputMetadata),
    load_ms,
    run,
    accelerated: null, // it has no delegates
  };
}

const RUNTIMES = {"litert-web": openLiteRt, "onnxruntime-web": openOnnx};

export async function open(options) {
  const {run, ...described} = await RUNTIMES[options.runtime](options);
  globalThis.renormliteRun = run;
  return {...described, isolated: globalThis.crossOriginIsolated};
}
