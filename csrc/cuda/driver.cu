#include <dlfcn.h>

#include <cstring>
#include <sstream>

#include "runtime.h"

namespace friction::cuda {
namespace {

constexpr int kStoreThreads = 256;

struct Payload {
  uint32_t* to;
  int words;
  uint32_t content[kStoreBytes / 4];
};
static_assert(sizeof(Payload) <= kParameterBytes);

__global__ void __launch_bounds__(kStoreThreads)
    store_kernel(const __grid_constant__ Payload payload) {
  // The threads of a warp read parameters one after another, so many blocks share the work.
  for (int i = int(blockIdx.x * kStoreThreads + threadIdx.x); i < payload.words;
       i += int(gridDim.x) * kStoreThreads)
    payload.to[i] = payload.content[i];
}

}  // namespace

void store(const void* bytes, size_t count, void* to, const Target& target) {
  for (size_t done = 0; done < count; done += kStoreBytes) {
    const size_t part = count - done < kStoreBytes ? count - done : kStoreBytes;
    Payload payload;
    payload.to = reinterpret_cast<uint32_t*>(static_cast<char*>(to) + done);
    payload.words = static_cast<int>((part + 3) / 4);
    std::memcpy(payload.content, static_cast<const char*>(bytes) + done, part);
    launch_kernel("store_table", store_kernel, payload,
                  (payload.words + kStoreThreads - 1) / kStoreThreads, kStoreThreads,
                  " of " + std::to_string(count) + " bytes", target);
  }
}

void probe(int device) {
  const Target target{device, nullptr};
  const std::string what = "store_table of 0 bytes";
  launch_kernel("store_table", store_kernel, Payload{}, 1, kStoreThreads, " of 0 bytes", target);
  const DeviceGuard guard(what, target);
  check(cudaStreamSynchronize(nullptr), what, target);
}

bool is_capturing(const Target& target) {
  const DeviceGuard guard("asking whether a stream is capturing", target);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(target.stream), &status),
        "asking whether a stream is capturing", target);
  return status != cudaStreamCaptureStatusNone;
}

std::string unavailable_reason(int device) {
  if (void* driver = dlopen("libcuda.so.1", RTLD_LAZY))
    dlclose(driver);
  else
    return "there is no NVIDIA driver on this machine";
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    return std::string("no CUDA device can be used: ") + cudaGetErrorString(error) + " (" +
           cudaGetErrorName(error) + ")";
  if (device >= count)
    return "there is no cuda:" + std::to_string(device) + ", only " + std::to_string(count) +
           " CUDA devices";
  const Target target{device, nullptr};
  const DeviceGuard guard("asking for a device", target);
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, store_kernel) == cudaSuccess) return "";
  cudaGetLastError();  // clears the error
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "cuda:" + std::to_string(device) + " has compute capability " + std::to_string(major) +
         "." + std::to_string(minor) + ", and this build has kernels for " +
         FRICTION_CUDA_ARCHITECTURES +
         "; build with FRICTION_CUDA_ARCHITECTURES=" + std::to_string(major) +
         std::to_string(minor) + "-real";
}

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream operand(FRICTION_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(operand, name, ',');) names.push_back(name);
  return names;
}

}  // namespace friction::cuda
