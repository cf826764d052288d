/* A stand-in for the driver API of CUDA in the host's memory: the calls are real, the card is not. It knows our three
   kernels by name and computes what they must; FAKE_CUDA names a defect that it shall have. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int has(const char *defect) {
    const char *wanted = getenv("FAKE_CUDA");
    return wanted && !strcmp(wanted, defect);
}
unsigned cuInit(unsigned flags) { return has("no-device") ? 100 : flags; }
unsigned cuGetErrorName(unsigned code, const char **name) {
    *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_OTHER";
    return 0;
}
unsigned cuDriverGetVersion(int *version) { *version = 13000; return 0; }
unsigned cuDeviceGetByPCIBusId(int *device, const char *address) {
    *device = 3;
    return strcmp(address, getenv("FAKE_ADDRESS")) ? 101 : 0;
}
unsigned cuDeviceGetName(char *name, int length, int device) {
    if (device != 3 || length < 32) return 1;
    strcpy(name, "Fake GeForce");
    return 0;
}
unsigned cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)8 << 30; return device != 3; }
unsigned cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? has("kepler") ? 3 : 8 : attribute == 76 ? 6 : -1;
    return device != 3;
}
unsigned cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)16; return device != 3; }
unsigned cuCtxSetCurrent(void *context) { return context != (void *)16; }
unsigned cuCtxSynchronize(void) {
    if (has("hang")) for (;;) { }
    if (has("crash")) abort();
    return has("launch") ? 719 : 0;
}
unsigned cuModuleLoadData(void **module, const void *image) {
    *module = (void *)32;
    return strstr(image, ".version 6.0") ? 0 : 218;
}
unsigned cuModuleGetFunction(void **kernel, void *module, const char *name) {
    if (module != (void *)32) return 1;
    *kernel = (void *)(uintptr_t)(!strcmp(name, "no43_chain") ? 1 : !strcmp(name, "no43_fill") ? 2 : !strcmp(name, "no43_verify") ? 3 : 0);
    return *kernel ? 0 : 500;
}
unsigned cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 64 << 20; *total = (size_t)8 << 30; return 0; }
unsigned cuMemAlloc_v2(uint64_t *address, size_t bytes) { /* aligned to 256 bytes, as CUDA says, and where it begins before that */
    if (bytes > (24 << 20) && bytes != (size_t)32 << 20) return 2; /* larger pieces are refused, but for the copy */
    char *place = malloc(bytes + 512);
    if (!place) return 2;
    *address = ((uint64_t)(uintptr_t)place + 511) & ~255ull;
    ((char **)(uintptr_t)*address)[-1] = place;
    return 0;
}
unsigned cuMemFree_v2(uint64_t address) { free(((char **)(uintptr_t)address)[-1]); return 0; }
unsigned cuMemAllocHost_v2(void **place, size_t bytes) { *place = malloc(bytes); return 0; }
unsigned cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    memcpy((void *)(uintptr_t)to, from, bytes);
    return 0;
}
unsigned cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    memcpy(to, (void *)(uintptr_t)from, bytes);
    if (has("copy") && bytes > 1000) ((char *)to)[999] ^= 1;
    return 0;
}
static uint32_t pattern(uint64_t i, uint32_t seed) {
    uint32_t x = (uint32_t)i * 0x9E3779B1u + (uint32_t)(i >> 32) * 0x85EBCA6Bu + seed;
    x = (x ^ (x >> 15)) * 0x2C1B3C6Du;
    return x ^ (x >> 12);
}
unsigned cuLaunchKernel(void *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void *stream, void **arguments, void **extra) {
    if (!gx || gy != 1 || gz != 1 || bx != 256 || by != 1 || bz != 1 || shared || stream || extra) return 1;
    uint32_t *words = *(uint32_t **)arguments[0], seed = *(uint32_t *)arguments[2];
    uint64_t count = *(uint64_t *)arguments[1];
    for (uint64_t i = 0; i < count; i++) {
        if (kernel == (void *)1) {
            uint32_t x = words[i] ^ seed;
            for (int n = 0; n < 64; n++) { x = x * 1664525u + ((uint32_t)i + 1013904223u); x ^= x >> 13; }
            words[i] = has("wrong") && i == 5 ? 0 : x;
        } else if (kernel == (void *)2) {
            words[i] = has("memory") && i == 77 ? 0 : pattern(i, seed);
        } else if (words[i] != pattern(i, seed)) {
            uint64_t *found = *(uint64_t **)arguments[3];
            found[0]++;
            if (i < found[1]) found[1] = i;
        }
    }
    return 0;
}
