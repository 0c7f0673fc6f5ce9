// The entry points of the CUDA runtime that the library calls. Memory of the device is memory of
// the host, and a launch is executed before it returns.
//
// Environment:
//   FRICTION_PTX: the architecture whose PTX is executed, like sm_80
//   FRICTION_PTX_UNCOVERED: a file to which the instructions go that were not executed
//   FRICTION_HOST_CAPTURES: streams are capturing
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>

#include "execution.h"

namespace {

std::map<std::string, std::unique_ptr<ptx::Kernel>> kernels;
std::map<const void*, ptx::Kernel*> functions;
ptx::Device device;
std::string last_fault;
std::mutex mutex;

template <class T>
cudaError_t give(T* to, T value) {
  *to = value;
  return cudaSuccess;
}

// Prints what no launch could report, and ends the process.
template <class F>
void or_abort(F&& f) {
  try {
    f();
  } catch (const ptx::Fault& fault) {
    std::fprintf(stderr, "%s\n", fault.what());
    std::abort();
  }
}

void add_kernels(const std::string& text) {
  const char* target = std::getenv("FRICTION_PTX");
  if (target == nullptr) throw ptx::Fault("FRICTION_PTX must name an architecture of the library");
  if (text.find(std::string(".target ") + target + "\n") == std::string::npos) return;
  for (auto& kernel : ptx::parse(text)) {
    const std::string name = kernel->name;
    kernels[name] = std::move(kernel);
  }
}

// Barriers, syncs of warps and fences, of all kernels.
std::vector<ptx::Instruction*> syncs() {
  std::vector<ptx::Instruction*> found;
  for (auto& [name, kernel] : kernels)
    for (ptx::Instruction& instruction : kernel->code)
      for (const char* opcode : {"bar.sync", "bar.warp.sync", "membar"})
        if (instruction.text.find(opcode) != std::string::npos) found.push_back(&instruction);
  return found;
}

struct AtExit {
  ~AtExit() {
    const char* path = std::getenv("FRICTION_PTX_UNCOVERED");
    if (path == nullptr) return;
    std::ofstream file(path);
    size_t executed = 0, all = 0;
    for (auto& [name, kernel] : kernels)
      for (const ptx::Instruction& instruction : kernel->code) {
        ++all;
        if (instruction.executions != 0)
          ++executed;
        else
          file << describe(instruction) << '\n';
      }
    file << executed << " of " << all << " instructions were executed\n";
  }
} at_exit;

}  // namespace

extern "C" {

// A fat binary: a header of 16 bytes, then entries, each a header and what it describes.
void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    const char* binary;
    void* file;
  };
  struct Header {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
  } header;
  struct Entry {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t compressed_bytes;
  } entry;
  constexpr uint16_t kPtx = 1;
  or_abort([&] {
    const char* at = static_cast<Wrapper*>(wrapper)->binary;
    std::memcpy(&header, at, sizeof header);
    at += header.header_bytes;
    for (const char* end = at + header.bytes; at < end; at += entry.header_bytes + entry.bytes) {
      std::memcpy(&entry, at, sizeof entry);
      if (entry.kind != kPtx) continue;
      if (entry.compressed_bytes != 0) throw ptx::Fault("the library's PTX is compressed");
      const std::string text(at + entry.header_bytes, entry.bytes);
      add_kernels(text.substr(0, text.find('\0')));
    }
  });
  static void* handle = nullptr;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  or_abort([&] {
    const auto found = kernels.find(name);
    if (found == kernels.end())
      throw ptx::Fault(std::string("the library has no PTX for FRICTION_PTX of ") + name);
    functions[host] = found->second.get();
  });
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return give(kernel, static_cast<cudaKernel_t>(const_cast<void*>(function)));
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  const std::lock_guard lock(mutex);
  try {
    ptx::Kernel& kernel = *functions.at(function);
    if (grid.x == 0 || block.x == 0 || block.x > kernel.most_threads || shared_bytes != 0 ||
        grid.y * grid.z * block.y * block.z != 1)
      throw ptx::Fault("a launch of " + kernel.name + " is not of its shape");
    std::memcpy(kernel.parameter.data(), arguments[0], kernel.parameter.size());
    ptx::execute(kernel, device, int(grid.x), int(block.x));
    return cudaSuccess;
  } catch (const ptx::Fault& fault) {
    last_fault = fault.what();
    return cudaErrorLaunchFailure;
  }
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}

// Never called: launches go by cudaLaunchKernel.
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { std::abort(); }

cudaError_t cudaGetDevice(int* number) { return give(number, 0); }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return give(count, 1); }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return last_fault.c_str(); }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorLaunchFailure"; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return attribute == cudaDevAttrMultiProcessorCount ? give(value, 2) : cudaErrorInvalidValue;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return give(blocks, 2);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  const bool captures = std::getenv("FRICTION_HOST_CAPTURES") != nullptr;
  return give(status, captures ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(*mode, current);
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void* function) {
  return functions.count(function) != 0 ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

// ---- for tests, which call them by ctypes

// Only this memory, and what was allowed before, may be accessed; null: all memory again.
void ptx_allow(const void* memory, size_t bytes) {
  if (memory == nullptr)
    device.allowed.clear();
  else if (bytes != 0)
    device.allowed[reinterpret_cast<uint64_t>(memory)] = reinterpret_cast<uint64_t>(memory) + bytes;
}

// What is wrong with a module; empty: nothing.
const char* ptx_fault_of(const char* text) {
  static std::string fault;
  fault.clear();
  try {
    ptx::parse(text);
  } catch (const ptx::Fault& found) {
    fault = found.what();
  }
  return fault.c_str();
}

// The number of barriers, syncs and fences in all kernels.
int ptx_syncs() { return int(syncs().size()); }

// Describes one of them, and takes it out or puts it back.
void ptx_set_sync(int number, bool present, char* description, size_t size) {
  ptx::Instruction& sync = *syncs()[size_t(number)];
  static const ptx::Operation nothing = [](ptx::Warp&, const ptx::Instruction&, ptx::Lanes) {};
  static std::map<const ptx::Instruction*, std::pair<ptx::Control, const ptx::Operation*>> taken;
  if (present && taken.count(&sync) != 0) {
    std::tie(sync.control, sync.operation) = taken[&sync];
    taken.erase(&sync);
  } else if (!present && taken.count(&sync) == 0) {
    taken[&sync] = {sync.control, sync.operation};
    sync.control = ptx::Control::kNext;
    sync.operation = &nothing;
  }
  std::snprintf(description, size, "%s", describe(sync).c_str());
}

}  // extern "C"
