/* A stand-in for NVML with the answers of one card; the second card has fallen off the bus. What it does not define is
   missing as in an older library. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char address[32];
} Pci;
#define CARD ((void *)7)

unsigned nvmlInit_v2(void) { return getenv("FAKE_NVML") ? 9 : 0; }
static unsigned say(char *to, unsigned length, const char *text) { return snprintf(to, length, "%s", text) >= (int)length ? 7 : 0; }
unsigned nvmlSystemGetDriverVersion(char *to, unsigned length) { return say(to, length, "580.95.05"); }
unsigned nvmlSystemGetNVMLVersion(char *to, unsigned length) { return say(to, length, "13.580.95.05"); }
unsigned nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13010; return 0; }
unsigned nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
unsigned nvmlDeviceGetHandleByIndex_v2(unsigned index, void **card) { *card = CARD; return index ? 15 : 0; }
unsigned nvmlDeviceGetPciInfo_v3(void *card, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    strcpy(pci->address, "00000000:01:00.0");
    pci->bus = 1;
    pci->id = 0x248410de;
    pci->subsystem = 0x146b10de;
    return card != CARD;
}
unsigned nvmlDeviceGetName(void *card, char *to, unsigned length) { return card != CARD ? 2 : say(to, length, "NVIDIA GeForce RTX 3070"); }
unsigned nvmlDeviceGetVbiosVersion(void *card, char *to, unsigned length) { return card != CARD ? 2 : say(to, length, "94.04.3f.00.77"); }
unsigned nvmlDeviceGetCurrPcieLinkGeneration(void *card, unsigned *n) { *n = 1; return card != CARD; }
unsigned nvmlDeviceGetCurrPcieLinkWidth(void *card, unsigned *n) { *n = 16; return card != CARD; }
unsigned nvmlDeviceGetMaxPcieLinkGeneration(void *card, unsigned *n) { *n = 4; return card != CARD; }
unsigned nvmlDeviceGetMaxPcieLinkWidth(void *card, unsigned *n) { *n = 16; return card != CARD; }
unsigned nvmlDeviceGetBAR1MemoryInfo(void *card, unsigned long long *n) { n[0] = 8ull << 30; n[1] = n[2] = 1; return card != CARD; }
unsigned nvmlDeviceGetMemoryInfo(void *card, unsigned long long *n) { n[0] = 8ull << 30; n[1] = 1; n[2] = 300 << 20; return card != CARD; }
unsigned nvmlDeviceGetVirtualizationMode(void *card, unsigned *n) { *n = 1; return card != CARD; }
unsigned nvmlDeviceGetCurrentClocksThrottleReasons(void *card, unsigned long long *n) { *n = 0x1005; return card != CARD; }
unsigned nvmlDeviceGetGspFirmwareVersion(void *card, char *to) { strcpy(to, "580.95.05"); return card != CARD; }
unsigned nvmlDeviceGetGspFirmwareMode(void *card, unsigned *on, unsigned *usual) { *on = *usual = 1; return card != CARD; }
unsigned nvmlDeviceGetTemperature(void *card, int sensor, unsigned *n) { *n = 41; return card != CARD || sensor; }
unsigned nvmlDeviceGetPcieReplayCounter(void *card, unsigned *n) { (void)card; *n = 99; return 3; }
