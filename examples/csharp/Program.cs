// dotnet run MODEL IMAGES [RUNTIME]: classifies raw float32 images of 32 x 32.
using System.Runtime.InteropServices;
using Microsoft.ML.OnnxRuntime;

byte[] bytes = File.ReadAllBytes(args[1]);
float[] pixels = MemoryMarshal.Cast<byte, float>(bytes).ToArray();

using var options = new SessionOptions();
if (args.Length > 2) options.RegisterCustomOpLibrary(args[2]);  // without it, the functions in the file are run
using var session = new InferenceSession(args[0], options);

long[] shape = { pixels.Length / 1024, 1, 32, 32 };
using var image = OrtValue.CreateTensorValueFromMemory(pixels, shape);
var inputs = new Dictionary<string, OrtValue> { ["image"] = image };
using var results = session.Run(new RunOptions(), inputs, session.OutputNames);
Console.WriteLine(string.Join(" ", results[0].GetTensorDataAsSpan<long>().ToArray()));
