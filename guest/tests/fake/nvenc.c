/* A stand-in for the video encoder's library, version 11.0 of its interface: structures as the vendor's header documents
   them, written down a second time so that the program's own are checked by another compiler. It writes H.264: raw
   blocks for a picture with content, predicted ones for a grey picture. FAKE_NVENC names a defect. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint32_t u32;
typedef uint64_t u64;
typedef struct { u32 a; uint16_t b, c; uint8_t d[8]; } Guid;
typedef struct { u32 version, device_type; void *device, *reserved; u32 api; u32 r1[253]; void *r2[64]; } Session;
typedef struct {
    u32 version, mode, qp[3], average, most, vbv, delay, flags, min[3], max[3], initial[3], layers;
    uint8_t layer_qp[8], quality[2]; uint16_t depth; uint8_t scale, r1[3];
    u32 map, passes, ratio, r2[5];
} Rate;
typedef struct {
    u32 version; Guid profile; u32 gop; int interval; u32 mono, fields, precision;
    Rate rate;
} ConfigStart;
typedef struct { ConfigStart start; u64 rest[427]; } Config; /* of the codec's part only the size matters here */
typedef struct { u32 version; Config config; u32 r1[255]; void *r2[64]; } Preset;
typedef struct {
    u32 version; Guid codec, preset;
    u32 width, height, shown_width, shown_height, rate, per, async, ptd, flags, private_size;
    void *private; Config *config; u32 most_width, most_height, hints[2][4], tuning, r1[288]; void *r2[64];
} Start;
typedef struct { u32 version, width, height, heap, format, r; void *buffer, *memory; u32 r1[57]; void *r2[63]; } Input;
typedef struct { u32 version, size, heap, r; void *buffer, *memory; u32 r1[58]; void *r2[64]; } Output;
typedef struct { u32 version, flags; void *buffer, *data; u32 pitch, r1[251]; void *r2[64]; } LockInput;
typedef struct {
    u32 version, flags; void *buffer; u32 *offsets; u32 frame, status, slices, size; u64 time, duration; void *data;
    u32 kind, structure, qp, satd, ltr, ltr_map, r[13], intra, inter; int mvx, mvy; u32 alpha, r1[218]; void *r2[64];
} LockOutput;
typedef struct {
    u32 version, width, height, pitch, flags, frame; u64 time, duration; void *input, *output, *event;
    u32 format, structure, kind; u64 codec[192]; u32 hints[2][4]; void *external; u32 r1[6]; void *r2[2];
    signed char *map; u32 map_size, r3; uint16_t distance[2]; void *alpha; u32 r4[286]; void *r5[59];
} Encode;
typedef struct { u32 version, reserved; void *place[318]; } List;
_Static_assert(sizeof(Session) == 1552 && sizeof(Rate) == 128 && sizeof(ConfigStart) == 168, "");
_Static_assert(sizeof(Config) == 3584 && sizeof(Preset) == 5128, "");
_Static_assert(sizeof(Start) == 1808 && sizeof(Input) == 776 && sizeof(Output) == 776 && sizeof(LockInput) == 1544, "");
_Static_assert(sizeof(LockOutput) == 1544 && sizeof(Encode) == 3344 && sizeof(List) == 2552, "");

enum { WIDTH = 640, HEIGHT = 360, PITCH = 704, COLUMNS = 40, ROWS = 23 };
static uint8_t picture[PITCH * HEIGHT * 3 / 2], first[PITCH * HEIGHT * 3 / 2], bits[1 << 20], stream[1 << 20];
static size_t at, length; /* bits written, bytes of the stream */
static int locked_input, locked_output, frames;

static int has(const char *defect) {
    const char *wanted = getenv("FAKE_NVENC");
    return wanted && !strcmp(wanted, defect);
}
static int is(Guid g, u32 a, uint16_t b, uint16_t c, const char *d) { return g.a == a && g.b == b && g.c == c && !memcmp(g.d, d, 8); }
static int is_h264(Guid g) { return is(g, 0x6bc82762, 0x4e63, 0x4ca4, "\xaa\x85\x1e\x50\xf3\x21\xf6\xbf"); }
static int is_p3(Guid g) { return is(g, 0x36850110, 0x3a07, 0x441f, "\x94\xd5\x36\x70\x63\x1f\x91\xf6"); }
#define SESSION ((void *)0x1000)
#define INPUT ((void *)0x2000)
#define OUTPUT ((void *)0x3000)

static void put(u32 value, int count) {
    while (count--) {
        if (value >> count & 1) bits[at / 8] |= 128 >> at % 8;
        at++;
    }
}
static void number(u32 value) {
    int length = 0;
    while ((value + 1) >> (length + 1)) length++;
    put(0, length);
    put(value + 1, length + 1);
}
static void unit(uint8_t head) { /* what was written, with the bytes that keep start codes out of it */
    put(1, 1);
    memcpy(stream + length, "\0\0\0\1", 4);
    length += 4;
    stream[length++] = head;
    int zeros = 0;
    for (size_t n = 0; n < (at + 7) / 8; n++) {
        if (zeros == 2 && bits[n] <= 3) { stream[length++] = 3; zeros = 0; }
        zeros = bits[n] ? 0 : zeros + 1;
        stream[length++] = bits[n];
    }
    memset(bits, 0, sizeof bits);
    at = 0;
}
static int is_grey(void) {
    for (int y = 0; y < HEIGHT; y++) for (int x = 0; x < WIDTH; x++) if (picture[y * PITCH + x] != 128) return 0;
    return 1;
}
static void raw_block(const uint8_t *from, int column, int row) {
    number(25);
    at = (at + 7) / 8 * 8;
    for (int n = 0; n < 256; n++) {
        int y = row * 16 + n / 16;
        put(from[(y < HEIGHT ? y : HEIGHT - 1) * PITCH + column * 16 + n % 16], 8);
    }
    const uint8_t *colour = from + PITCH * HEIGHT;
    for (int plane = 0; plane < 2; plane++) for (int n = 0; n < 64; n++) {
        int y = row * 8 + n / 8;
        put(colour[(y < HEIGHT / 2 ? y : HEIGHT / 2 - 1) * PITCH + (column * 8 + n % 8) * 2 + plane], 8);
    }
}
static void make(void) {
    length = 0;
    put(66, 8); put(0xc0, 8); put(30, 8); number(0); number(4); number(2); number(1); put(0, 1);
    number(COLUMNS - 1); number(ROWS - 1); put(1, 1); put(1, 1);
    put(1, 1); number(0); number(0); number(0); number(has("size") ? 0 : 4);
    put(0, 1);
    unit(0x67);
    number(0); number(0); put(0, 1); put(0, 1); number(0); number(0); number(0); put(0, 1); put(0, 2);
    number(0); number(0); number(0); put(0, 3);
    unit(0x68);
    number(0); number(7); number(0); put(0, 8); number(frames % 2); put(0, 1); put(0, 1); number(0);
    const uint8_t *from = has("frozen") ? first : picture;
    int grey = has("blind") || is_grey();
    for (int n = 0; n < COLUMNS * ROWS; n++) {
        if (grey) { number(3); number(0); number(0); put(1, 1); } else raw_block(from, n % COLUMNS, n / COLUMNS);
    }
    unit(0x65);
    if (has("garbage")) memset(stream, 0x55, length);
}

static u32 open_session(Session *s, void **session) {
    if (s->version != 0x7001000b || s->api != 11) return 15;
    if (s->device_type != 1 || s->device != (void *)16) return 4;
    *session = SESSION;
    return has("none") ? 2 : has("sessions") ? 10 : 0;
}
static u32 preset(void *s, Guid codec, Guid preset, u32 tuning, Preset *p) {
    if (p->version != 0xf004000b || p->config.start.version != 0xf007000b) return 15;
    if (s != SESSION || !is_h264(codec) || !is_p3(preset) || tuning != 2) return 8;
    p->config.start.interval = 3;
    p->config.start.fields = 1;
    p->config.start.rate.version = 0x7001000b;
    p->config.start.rate.mode = 2;
    return 0;
}
static u32 start(void *s, Start *p) {
    if (p->version != 0xf005000b) return 15;
    ConfigStart *c = &p->config->start;
    if (s != SESSION || !is_h264(p->codec) || !is_p3(p->preset) || p->tuning != 2 || p->async || !p->ptd) return 8;
    if (p->width != WIDTH || p->height != HEIGHT || p->rate != 30 || p->per != 1) return 8;
    if (c->interval != 1 || c->fields != 1 || c->rate.version != 0x7001000b || c->rate.mode || c->rate.qp[2] != 24) return 8;
    return has("start") ? 12 : 0;
}
static u32 make_input(void *s, Input *p) {
    if (p->version != 0x7001000b) return 15;
    p->buffer = INPUT;
    return s == SESSION && p->width == WIDTH && p->height == HEIGHT && p->format == 1 ? 0 : 8;
}
static u32 make_output(void *s, Output *p) { p->buffer = OUTPUT; return s != SESSION ? 8 : p->version == 0x7001000b ? 0 : 15; }
static u32 lock_input(void *s, LockInput *p) {
    if (s != SESSION || p->version != 0x7001000b || p->buffer != INPUT || locked_input) return 8;
    locked_input = 1;
    p->data = picture;
    p->pitch = PITCH;
    return 0;
}
static u32 unlock_input(void *s, void *buffer) { return s == SESSION && buffer == INPUT && locked_input-- ? 0 : 8; }
static u32 encode(void *s, Encode *p) {
    if (p->version != 0xf004000b) return 15;
    if (s != SESSION || p->input != INPUT || p->output != OUTPUT || p->format != 1 || p->structure != 1) return 8;
    if (p->width != WIDTH || p->height != HEIGHT || p->pitch != PITCH || p->flags != 6 || (int)p->frame != frames) return 8;
    if (locked_input || locked_output) return 13;
    if (frames == 1) memcpy(first, picture, sizeof first);
    make();
    frames++;
    return 0;
}
static u32 lock_output(void *s, LockOutput *p) {
    if (s != SESSION || p->version != 0x7001000b || p->buffer != OUTPUT || locked_output) return 8;
    if (has("hang")) for (;;) { }
    locked_output = 1;
    p->data = stream;
    p->size = length;
    p->kind = 3;
    return 0;
}
static u32 unlock_output(void *s, void *buffer) { return s == SESSION && buffer == OUTPUT && locked_output-- ? 0 : 8; }
static const char *last_error(void *s) { return s == SESSION ? "as asked for" : 0; }

u32 NvEncodeAPIGetMaxSupportedVersion(u32 *version) { *version = has("old") ? 10 << 4 : 13 << 4; return 0; }
u32 NvEncodeAPICreateInstance(List *list) {
    if (list->version != 0x7002000b) return 15;
    void *known[] = { start, make_input, 0, make_output, 0, encode, lock_output, unlock_output, lock_input, unlock_input };
    memcpy(list->place + 11, known, sizeof known);
    list->place[29] = open_session;
    list->place[37] = last_error;
    list->place[39] = preset;
    return 0;
}
