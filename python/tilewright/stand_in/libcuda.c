// A stand-in for NVIDIA's driver library, libcuda.so.1: what Triton's driver and launchers call, on a machine without a
// GPU. It holds every call against the limits of a chip and computes nothing. What it refuses, it refuses with a sentence
// in the place of CUDA's "invalid argument".
#include <cuda.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

static struct {
  int major, minor, multiprocessors, shared_bytes;
} chip;

EXPORT void stand_in_configure(int major, int minor, int multiprocessors, int shared_bytes) {
  chip.major = major, chip.minor = minor, chip.multiprocessors = multiprocessors, chip.shared_bytes = shared_bytes;
}

static char reason[256] = "nothing was refused";

static CUresult refuse(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reason, sizeof reason, format, arguments);
  va_end(arguments);
  return CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult CUDAAPI cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_SUCCESS ? "no error" : reason;
  return CUDA_SUCCESS;
}

// --- devices and contexts: there is one of each -----------------------------------------------------------------------

EXPORT CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = chip.shared_bytes; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = chip.shared_bytes + 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = chip.multiprocessors; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = chip.major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = chip.minor; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 1; break;  // for rooflines, which nobody draws of it
    default: return refuse("the stand-in driver does not know device attribute %d", (int)attribute);
  }
  return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuCtxGetCurrent(CUcontext* context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}
EXPORT CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
EXPORT CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return cuCtxGetCurrent(context);
}
EXPORT CUresult CUDAAPI cuCtxGetLimit(size_t* value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}
EXPORT CUresult CUDAAPI cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

// Tensors of the CPU pass for the device's.
EXPORT CUresult CUDAAPI cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr*)value = pointer;
  return CUDA_SUCCESS;
}

// --- kernels ------------------------------------------------------------------------------------------------------------

struct Kernel {
  int registers, dynamic_bytes;  // of shared memory, at most
};

static int max_threads(const struct Kernel* kernel) {
  const int registers_of_warp = (kernel->registers + 7) / 8 * 8 * 32;  // registers are given out in eights
  const int threads = 65536 / registers_of_warp * 32;
  return threads < 1024 ? threads : 1024;
}

// The registers of the one kernel in a cubin, an ELF file: attribute 0x2f of the section .nv.info.
static int registers_of(const uint8_t* file) {
  uint64_t headers;
  uint16_t size, count, names;
  memcpy(&headers, file + 0x28, 8), memcpy(&size, file + 0x3a, 2);
  memcpy(&count, file + 0x3c, 2), memcpy(&names, file + 0x3e, 2);
  uint64_t strings;
  memcpy(&strings, file + headers + (uint64_t)names * size + 0x18, 8);
  for (int i = 0; i < count; ++i) {
    const uint8_t* header = file + headers + (uint64_t)i * size;
    uint32_t name;
    uint64_t begin, bytes;
    memcpy(&name, header, 4), memcpy(&begin, header + 0x18, 8), memcpy(&bytes, header + 0x20, 8);
    if (strcmp((const char*)file + strings + name, ".nv.info") != 0) continue;
    for (const uint8_t *at = file + begin, *end = at + bytes; at + 4 <= end;) {
      uint16_t value;
      memcpy(&value, at + 2, 2);
      const int has_payload = at[0] == 4;  // else the value is all there is
      if (has_payload && at[1] == 0x2f && value >= 8) {
        uint32_t registers;
        memcpy(&registers, at + 8, 4);
        return (int)registers;
      }
      at += 4 + (has_payload ? value : 0);
    }
  }
  return 0;
}

EXPORT CUresult CUDAAPI cuModuleLoadData(CUmodule* module, const void* image) {
  if (memcmp(image, "\177ELF", 4) != 0) return refuse("a module that is no cubin");
  const int registers = registers_of(image);
  if (registers <= 0 || registers > 255) return refuse("a cubin that does not say how many registers its kernel takes");
  struct Kernel* kernel = malloc(sizeof *kernel);
  *kernel = (struct Kernel){registers, 48 * 1024};
  *module = (CUmodule)kernel;
  return CUDA_SUCCESS;
}
EXPORT CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  *function = (CUfunction)module;
  return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  const struct Kernel* kernel = (const struct Kernel*)function;
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = kernel->registers; break;
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = max_threads(kernel); break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = 0; break;
    default: return refuse("the stand-in driver does not know function attribute %d", (int)attribute);
  }
  return CUDA_SUCCESS;
}
EXPORT CUresult CUDAAPI cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
EXPORT CUresult CUDAAPI cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (value > chip.shared_bytes)
    return refuse("%d bytes of shared memory for a block, at most %d", value, chip.shared_bytes);
  ((struct Kernel*)function)->dynamic_bytes = value;
  return CUDA_SUCCESS;
}

static CUresult check_launch(const CUlaunchConfig* c, const struct Kernel* kernel) {
  const unsigned threads = c->blockDimX * c->blockDimY * c->blockDimZ;
  if (c->gridDimX > 2147483647u || c->gridDimY > 65535u || c->gridDimZ > 65535u)
    return refuse("a grid of %u x %u x %u blocks, at most 2147483647 x 65535 x 65535", c->gridDimX, c->gridDimY,
                  c->gridDimZ);
  if (threads == 0 || threads > 1024) return refuse("%u threads in a block, at most 1024", threads);
  if (kernel == NULL) return CUDA_SUCCESS;  // it was not compiled
  if ((int)threads > max_threads(kernel))
    return refuse("%u threads of %d registers each, at most %d", threads, kernel->registers, max_threads(kernel));
  if ((int)c->sharedMemBytes > kernel->dynamic_bytes)
    return refuse("%u bytes of shared memory, at most %d", c->sharedMemBytes, kernel->dynamic_bytes);
  return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters,
                                         void** extra) {
  return check_launch(config, (const struct Kernel*)function);
}
// For launches of what was not compiled: null, or why it is refused.
EXPORT const char* stand_in_refuses(unsigned x, unsigned y, unsigned z, unsigned threads) {
  const CUlaunchConfig config = {
      .gridDimX = x, .gridDimY = y, .gridDimZ = z, .blockDimX = threads, .blockDimY = 1, .blockDimZ = 1};
  return check_launch(&config, NULL) == CUDA_SUCCESS ? NULL : reason;
}

EXPORT CUresult CUDAAPI cuOccupancyMaxActiveClusters(int* clusters, CUfunction function, const CUlaunchConfig* config) {
  *clusters = chip.multiprocessors;
  return CUDA_SUCCESS;
}

// --- descriptors of tensors, for TMA -------------------------------------------------------------------------------------

static int element_bytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
    default: return 4;
  }
}

// As the driver's documentation has it, of descriptors without interleaving.
EXPORT CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                               void* address, const cuuint64_t* dims, const cuuint64_t* strides,
                                               const cuuint32_t* box, const cuuint32_t* element_strides,
                                               CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                               CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  if (chip.major < 9) return refuse("a descriptor for TMA on compute capability %d.%d", chip.major, chip.minor);
  if ((uintptr_t)map % 64 != 0) return refuse("a descriptor at an address that is no multiple of 64");
  if (rank < 1 || rank > 5) return refuse("a descriptor of rank %u, accepted are 1 to 5", rank);
  if (address == NULL || (uintptr_t)address % 16 != 0)
    return refuse("a descriptor of address %p, which must be a multiple of 16", address);
  for (cuuint32_t d = 0; d < rank; ++d) {
    if (dims[d] < 1 || dims[d] > (cuuint64_t)1 << 32)
      return refuse("a descriptor of %llu elements along dimension %u", (unsigned long long)dims[d], d);
    if (box[d] < 1 || box[d] > 256) return refuse("a box of %u elements along dimension %u, at most 256", box[d], d);
    if (element_strides[d] < 1 || element_strides[d] > 8) return refuse("an element stride of %u", element_strides[d]);
    if (d + 1 < rank && (strides[d] % 16 != 0 || strides[d] == 0 || strides[d] >= (cuuint64_t)1 << 40))
      return refuse("a descriptor with a stride of %llu bytes, which must be a multiple of 16 below 2^40",
                    (unsigned long long)strides[d]);
  }
  const unsigned inner = box[0] * (unsigned)element_bytes(type);
  if (inner % 16 != 0) return refuse("a box with rows of %u bytes, which must be a multiple of 16", inner);
  const unsigned widest = swizzle == CU_TENSOR_MAP_SWIZZLE_32B    ? 32
                          : swizzle == CU_TENSOR_MAP_SWIZZLE_64B  ? 64
                          : swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 1u << 31
                                                                  : 128;
  if (inner > widest) return refuse("a box with rows of %u bytes, whose swizzle takes %u", inner, widest);
  memset(map, 0, sizeof *map);
  return CUDA_SUCCESS;
}
