// run MODEL IMAGES [RUNTIME]: classifies raw float32 images of 32 x 32.
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  std::ifstream file(argv[2], std::ios::binary);
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};

  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "example");
  Ort::SessionOptions options;
  if (argc > 3) options.RegisterCustomOpsLibrary(argv[3]);  // without it, the functions in the file are run
  Ort::Session session(env, argv[1], options);

  auto* pixels = reinterpret_cast<float*>(bytes.data());
  const std::size_t count = bytes.size() / sizeof(float);
  const std::int64_t shape[] = {static_cast<std::int64_t>(count / 1024), 1, 32, 32};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Value image = Ort::Value::CreateTensor<float>(memory, pixels, count, shape, 4);

  const char* inputs[] = {"image"};
  const char* outputs[] = {"class"};
  auto results = session.Run(Ort::RunOptions{}, inputs, &image, 1, outputs, 1);
  const auto* classes = results[0].GetTensorData<std::int64_t>();
  for (std::int64_t i = 0; i < shape[0]; i++) std::printf("%lld ", static_cast<long long>(classes[i]));
  std::printf("\n");
}
