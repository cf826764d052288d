/* A stand-in for OptiX, interface 41: structures as the vendor's header documents them, written down a second time so that
   the program's own are checked by another compiler. It reads the programs' PTX and does what it says, instruction by
   instruction, in the memory of the stand-in for CUDA; rays are traced here, by trying every triangle that is about its way, and a ray that passes
   near an edge, or a distance at which the answer changes, is refused. FAKE_OPTIX names a defect. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint32_t u32;
typedef uint64_t u64;
typedef struct { void *log, *data; int level; u32 validation; } ContextOptions;
typedef struct { int registers; u32 optimise, debug; const void *bound; u32 bounds; } ModuleOptions;
typedef struct { int motion; u32 graph; int payload, attributes; u32 exceptions; const char *params; u32 primitives; } PipelineOptions;
typedef struct { u32 depth, debug; } LinkOptions;
typedef struct { u32 kind, flags; struct { void *module; const char *name; } program[3]; } Group;
typedef struct { u32 flags, operation; struct { uint16_t keys, flags; float begin, end; } motion; } BuildOptions;
typedef struct { size_t output, temporary, update; } Sizes;
typedef struct {
    const u64 *buffers; u32 vertices, format, stride; u64 indices; u32 triplets, index_format, index_stride;
    u64 transform; const u32 *flags; u32 records; u64 offsets; u32 offset_size, offset_stride, first, transform_format;
} Triangles;
typedef struct { u32 kind; union { Triangles triangles; char pad[1024]; }; } Input;
typedef struct { u64 base; u32 stride, count; } Records;
typedef struct { u64 raygen, exception; Records miss, hit, callables; } Table;
_Static_assert(sizeof(ContextOptions) == 24 && sizeof(ModuleOptions) == 32 && sizeof(PipelineOptions) == 40, "");
_Static_assert(sizeof(Group) == 56 && sizeof(BuildOptions) == 20 && sizeof(Triangles) == 96, "");
_Static_assert(sizeof(Input) == 1032 && sizeof(Table) == 64, "");

enum { INVALID = 7001, LAUNCH = 7050, BAD_PTX = 7200, NOT_SUPPORTED = 7800, OLD = 7801, SIZE = 7802, INTERNAL = 7990 };
enum { NO_DEBUG = 0x2350, STEPS = 64, WORDS = 20, REGISTERS = 32 };
#define CUDA ((void *)16)
#define CONTEXT ((void *)0x100)
#define MODULE ((void *)0x200)
#define PIPELINE ((void *)0x400)
#define HANDLE 0x77ff000000000770ull

static int has(const char *defect) {
    const char *wanted = getenv("FAKE_OPTIX");
    return wanted && !strcmp(wanted, defect);
}

/* ---- the programs ---- */
typedef struct { char word[WORDS][32]; int words; } Step;
typedef struct { char name[32]; Step step[STEPS]; int steps, declared[3]; } Program;
static Program programs[3];
static int found;
static unsigned params_size;
static char params_name[32], defect_text[200];

static int wrong(const char *what, const Step *step) {
    int n = snprintf(defect_text, sizeof defect_text, "%s", what);
    for (int w = 0; step && w < step->words && n < 160; w++) n += snprintf(defect_text + n, sizeof defect_text - n, " %s", step->word[w]);
    return 0;
}
/* What the instructions take: registers of 32 bits, 64 bits and floats (r, d, f), also as a number (i, z), a place among the
   parameters (p), an address (a). A call's results come first. Last, in which programs it may be: start, miss, hit. */
static const char *const KNOWN[][3] = {
    { "ld.const.u64", "dp", "smh" }, { "ld.const.u32", "rp", "smh" }, { "cvta.to.global.u64", "dd", "smh" },
    { "mul.wide.u32", "dri", "smh" }, { "mul.lo.u32", "rri", "smh" }, { "add.u64", "ddd", "smh" }, { "add.u32", "rri", "smh" },
    { "xor.b32", "rrr", "smh" }, { "mov.f32", "fz", "smh" }, { "mov.u32", "ri", "smh" }, { "ld.global.f32", "fa", "smh" },
    { "st.global.u32", "ar", "smh" }, { "ret", "", "smh" },
    { "_optix_get_launch_index_x", "r", "smh" }, { "_optix_trace_1", "rdfffffffffrrrrrr", "s" },
    { "_optix_get_payload_0", "r", "mh" }, { "_optix_set_payload_0", "r", "mh" }, { "_optix_read_primitive_idx", "r", "h" },
};
static int letter(char c) { return c == 'r' ? 0 : c == 'd' ? 1 : c == 'f' ? 2 : -1; }
static int operand(const Program *p, const char *text, char kind) {
    char type;
    int number;
    unsigned at;
    if (kind == 'p') return !strncmp(text, params_name, strlen(params_name)) && (!text[strlen(params_name)] ? 1 : sscanf(text + strlen(params_name), "+%u", &at) == 1 && at < params_size);
    if (kind == 'z') return !strncmp(text, "0f", 2) && strlen(text) == 10;
    if (sscanf(text, "%%%c%d", &type, &number) != 2) return kind == 'i' && *text >= '0' && *text <= '9';
    kind = kind == 'a' ? 'd' : kind == 'i' ? 'r' : kind;
    return type == kind && letter(type) >= 0 && number < p->declared[letter(type)];
}
/* A call is turned round: its name first, then its results and what it is given, as other instructions have it. */
static int turn(Step *s) {
    for (int w = 1; w < s->words; w++) {
        if (s->word[w][0] != '_') continue;
        memmove(s->word[0], s->word[w], sizeof s->word[0]);
        memmove(s->word[w], s->word[w + 1], sizeof s->word[0] * (s->words - w - 1));
        s->words--;
        return 1;
    }
    return wrong("a call of nothing", s);
}
static int check(const Program *p, Step *s) {
    int is_call = !strcmp(s->word[0], "call"), results = s->words > 1 && s->word[1][0] == '%';
    if (is_call && !turn(s)) return 0;
    char program = p->name[2] == 'r' ? 's' : p->name[2] == 'm' ? 'm' : 'h';
    for (size_t n = 0; n < sizeof KNOWN / sizeof *KNOWN; n++) {
        if (strcmp(s->word[0], KNOWN[n][0])) continue;
        const char *takes = KNOWN[n][1];
        if ((int)strlen(takes) != s->words - 1) return wrong("not as many operands as it has:", s);
        if (is_call && results != (s->word[0][7] != 's')) return wrong("results where there are none:", s);
        for (int w = 1; w < s->words; w++) if (!operand(p, s->word[w], takes[w - 1])) return wrong("operand of another kind:", s);
        return strchr(KNOWN[n][2], program) || wrong("not in this program:", s);
    }
    return wrong("unknown:", s);
}
static int statement(Program *p, char *text) {
    Step step = { .words = 0 };
    for (char *word = strtok(text, " \t\n,()[]"); word; word = strtok(NULL, " \t\n,()[]")) {
        if (step.words == WORDS || strlen(word) >= sizeof step.word[0]) return wrong("a long statement", 0);
        strcpy(step.word[step.words++], word);
    }
    if (!step.words) return 1;
    if (!strcmp(step.word[0], ".reg")) {
        char type;
        int count;
        const char *types[] = { ".b32", ".b64", ".f32" };
        if (step.words != 3 || sscanf(step.word[2], "%%%c<%d>", &type, &count) != 2) return wrong("a declaration:", &step);
        if (letter(type) < 0 || count > REGISTERS || strcmp(step.word[1], types[letter(type)])) return wrong("a declaration:", &step);
        p->declared[letter(type)] = count;
        return 1;
    }
    if (p->steps == STEPS || !check(p, &step)) return p->steps == STEPS ? wrong("too long", 0) : 0;
    p->step[p->steps++] = step;
    return 1;
}
static int read_ptx(char *text) {
    for (char *at = text; (at = strstr(at, "//"));) while (*at && *at != '\n') *at++ = ' ';
    if (!strstr(text, ".version 6.0\n.target sm_50\n.address_size 64\n")) return wrong("no head", 0);
    char *params = strstr(text, ".const .align 8 .b8 ");
    if (!params || sscanf(params, ".const .align 8 .b8 %31[a-z0-9_][%u];", params_name, &params_size) != 2) return wrong("no parameters", 0);
    for (char *at = text; (at = strstr(at, ".visible .entry "));) {
        if (found == 3) return wrong("a fourth program", 0);
        Program *p = &programs[found++];
        int head = 0;
        if (sscanf(at, ".visible .entry %31[a-z0-9_]()\n{%n", p->name, &head) != 1 || !head) return wrong("a head", 0);
        at += head;
        char *end = strchr(at, '}');
        if (!end) return wrong("no end", 0);
        while (at < end) {
            char *stop = strpbrk(at, ";}");
            int last = stop == end;
            *stop = 0;
            if (!statement(p, at)) return 0;
            if (last) break;
            at = stop + 1;
        }
        if (!p->steps || strcmp(p->step[p->steps - 1].word[0], "ret")) return wrong("no return", 0);
        at = end + 1;
    }
    return found == 3 || wrong("not three programs", 0);
}
static const Program *program(const char *name) {
    for (int n = 0; n < found; n++) if (name && !strcmp(programs[n].name, name)) return &programs[n];
    return 0;
}
static void say(char *log, size_t *size, const char *text) {
    if (!log || !size || !*size) return;
    snprintf(log, *size, "%s", text);
    *size = strlen(text) + 1;
}

/* ---- tracing ---- */
static const float *vertices;
static float (*boxes)[2][2]; /* least and most x and y */
static u32 triangles;
static void *group_of[3];
static const Program *chosen[3];
static double cross(int n, const double *a, const double *b) { return a[(n + 1) % 3] * b[(n + 2) % 3] - a[(n + 2) % 3] * b[(n + 1) % 3]; }
static double dot(const double *a, const double *b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
/* The nearest triangle, -1 for none, -2 for a ray that no answer can be known for. */
static int nearest(const float *origin, const float *way, double least, double most) {
    double best = 1e30, d[3] = { way[0], way[1], way[2] };
    int hit = -1;
    float low[2], high[2]; /* the way and 2 on each side */
    for (int k = 0; k < 2; k++) {
        float from = origin[k] + way[k] * least, to = origin[k] + way[k] * most;
        low[k] = fminf(from, to) - 2;
        high[k] = fmaxf(from, to) + 2;
    }
    for (u32 n = 0; n < triangles; n++) {
        const float *v = vertices + n * 9;
        const float(*box)[2] = boxes[n];
        if (box[1][0] < low[0] || box[1][1] < low[1] || box[0][0] > high[0] || box[0][1] > high[1]) continue;
        double e[3], f[3], s[3], p[3], q[3];
        for (int k = 0; k < 3; k++) { e[k] = v[3 + k] - v[k]; f[k] = v[6 + k] - v[k]; s[k] = origin[k] - v[k]; }
        for (int k = 0; k < 3; k++) { p[k] = cross(k, d, f); q[k] = cross(k, s, e); }
        double det = dot(e, p), b = dot(s, p) / det, c = dot(d, q) / det, a = 1 - b - c, t = dot(f, q) / det;
        if (fabs(det) < 0.1) return -2;
        double inside = fmin(a, fmin(b, c));
        if (fabs(inside) < 0.2) return -2;
        if (inside < 0) continue;
        if (fabs(t - least) < 0.5 || fabs(t - most) < 0.5 || fabs(t - best) < 0.5) return -2;
        if (t > least && t < most && t < best && !(has("first") && hit >= 0)) { best = t; hit = (int)n; }
    }
    return has("blind") ? -1 : hit;
}
typedef struct { u64 value[3][REGISTERS]; char set[3][REGISTERS]; } Registers;
static int run(const Program *p, const char *params, u32 index, u32 *payload, int hit);
static u64 *place(Registers *r, const char *text, char **rest) {
    int kind = letter(text[1]), number = (int)strtol(text + 2, rest, 10);
    return &r->value[kind][number];
}
static u64 get(Registers *r, const char *text, int *good) {
    if (text[0] != '%') return strtoull(text, 0, 10);
    char *rest;
    u64 *at = place(r, text, &rest);
    if (!((char *)r->set)[at - r->value[0]]) *good = 0;
    return *at + (*rest == '+' ? strtoull(rest + 1, 0, 10) : 0);
}
static void set(Registers *r, const char *text, u64 value) {
    char *rest;
    u64 *at = place(r, text, &rest);
    *at = text[1] == 'd' ? value : (u32)value;
    ((char *)r->set)[at - r->value[0]] = 1;
}
static int trace(Registers *r, const Step *s, const char *params, u32 *answer) {
    int good = 1;
    u32 word[9];
    float f[9];
    for (int n = 0; n < 9; n++) word[n] = (u32)get(r, s->word[3 + n], &good);
    memcpy(f, word, sizeof f);
    u32 rest[6];
    for (int n = 0; n < 6; n++) rest[n] = (u32)get(r, s->word[12 + n], &good);
    /* mask, flags, offset and stride in the table, miss */
    if (!good || get(r, s->word[2], &good) != HANDLE || rest[0] != 255 || rest[1] || rest[2] || rest[3] != 1 || rest[4]) return 0;
    if (f[8] || f[6] < 0 || f[7] <= f[6]) return 0;
    int hit = nearest(f, f + 3, f[6], f[7]);
    if (hit == -2) return 0;
    *answer = rest[5];
    return run(chosen[hit < 0 ? 1 : 2], params, 0, answer, hit);
}
static int run(const Program *p, const char *params, u32 index, u32 *payload, int hit) {
    Registers r;
    memset(&r, 0, sizeof r);
    int good = 1;
    for (const Step *s = p->step; good; s++) {
        const char *op = s->word[0], *a = s->word[1], *b = s->word[2], *c = s->word[3];
        if (!strcmp(op, "ret")) return 1;
        if (!strncmp(op, "ld.const", 8)) {
            const char *from = params + (strchr(b, '+') ? atoi(strchr(b, '+') + 1) : 0);
            u64 value = 0;
            memcpy(&value, from, op[10] == '6' ? 8 : 4);
            set(&r, a, value);
        } else if (!strcmp(op, "ld.global.f32")) {
            u64 from = get(&r, b, &good);
            if (!good || !from || from % 4) return 0;
            set(&r, a, *(u32 *)(uintptr_t)from);
        } else if (!strcmp(op, "st.global.u32")) {
            u64 to = get(&r, a, &good), value = get(&r, b, &good);
            if (!good || !to || to % 4) return 0;
            *(u32 *)(uintptr_t)to = has("wrong") && index == 5 ? 0 : (u32)value;
        }
        else if (!strncmp(op, "cvta", 4)) set(&r, a, get(&r, b, &good));
        else if (!strncmp(op, "mul", 3)) set(&r, a, get(&r, b, &good) * (u32)get(&r, c, &good));
        else if (!strncmp(op, "add", 3)) set(&r, a, get(&r, b, &good) + get(&r, c, &good));
        else if (!strcmp(op, "xor.b32")) set(&r, a, get(&r, b, &good) ^ get(&r, c, &good));
        else if (!strcmp(op, "mov.u32")) set(&r, a, get(&r, b, &good));
        else if (!strcmp(op, "mov.f32")) set(&r, a, strtoull(b + 2, 0, 16));
        else if (!strcmp(op, "_optix_get_launch_index_x")) set(&r, a, index);
        else if (!strcmp(op, "_optix_get_payload_0")) set(&r, a, *payload);
        else if (!strcmp(op, "_optix_set_payload_0")) *payload = (u32)get(&r, a, &good);
        else if (!strcmp(op, "_optix_read_primitive_idx")) set(&r, a, (u32)hit);
        else if (!strcmp(op, "_optix_trace_1")) {
            u32 answer;
            if (!trace(&r, s, params, &answer)) return 0;
            set(&r, a, answer);
        } else return 0;
    }
    return 0;
}

/* ---- the interface ---- */
static const char *error_name(u32 code) {
    return code == BAD_PTX ? "OPTIX_ERROR_INVALID_PTX" : code == INVALID ? "OPTIX_ERROR_INVALID_VALUE" : code == INTERNAL ? 0 : "OPTIX_ERROR_OTHER";
}
static u32 create_context(void *cuda, const ContextOptions *o, void **context) {
    *context = CONTEXT;
    if (cuda != CUDA || o->log || o->data || o->level || o->validation) return INVALID;
    return has("none") ? NOT_SUPPORTED : 0;
}
static int keeps = 1;
static u32 cache(void *context, int on) { keeps = on; return context != CONTEXT ? INVALID : 0; }
static int plain(const PipelineOptions *o) {
    return !o->motion && o->graph == 1 && o->payload == 1 && o->attributes == 2 && !o->exceptions && o->primitives == 1u << 31;
}
static u32 module(void *context, const ModuleOptions *o, const PipelineOptions *p, const char *ptx, size_t size, char *log, size_t *log_size, void **module) {
    if (context != CONTEXT || o->registers || o->optimise || o->debug != NO_DEBUG || o->bound || o->bounds || !plain(p)) return INVALID;
    if (strlen(ptx) != size || keeps) return INVALID;
    char *text = strdup(ptx);
    if (has("module")) {
        char long_text[5000] = "COMPILE ERROR: as asked for\n  and more of it\n";
        memset(long_text + strlen(long_text), 'x', sizeof long_text - strlen(long_text) - 1);
        long_text[sizeof long_text - 1] = 0;
        say(log, log_size, long_text);
        return BAD_PTX;
    }
    if (!read_ptx(text)) { say(log, log_size, defect_text); return BAD_PTX; }
    if (strcmp(params_name, p->params)) return INVALID;
    *module = MODULE;
    say(log, log_size, "");
    return 0;
}
static u32 groups(void *context, const Group *g, u32 count, const int *options, char *log, size_t *log_size, void **answer) {
    const char *heads[] = { "__raygen__", "__miss__", "__closesthit__" };
    const u32 kinds[] = { 0x2421, 0x2422, 0x2424 };
    if (context != CONTEXT || count != 3 || *options) return INVALID;
    for (int n = 0; n < 3; n++) {
        const Program *p = program(g[n].program[0].name);
        if (g[n].kind != kinds[n] || g[n].flags || g[n].program[0].module != MODULE) return INVALID;
        if (!p || strncmp(p->name, heads[n], strlen(heads[n]))) { say(log, log_size, "no such program"); return INVALID; }
        for (int other = 1; other < 3; other++) if (g[n].program[other].module || g[n].program[other].name) return INVALID;
        chosen[n] = p;
        group_of[n] = answer[n] = (char *)0x300 + n;
    }
    return 0;
}
static u32 pipeline(void *context, const PipelineOptions *p, const LinkOptions *l, void *const *g, u32 count, char *log, size_t *log_size, void **answer) {
    if (context != CONTEXT || !plain(p) || strcmp(params_name, p->params) || l->depth != 1 || l->debug != NO_DEBUG) return INVALID;
    if (count != 3 || memcmp(g, group_of, sizeof group_of)) return INVALID;
    *answer = PIPELINE;
    say(log, log_size, "linked as asked for");
    return has("link") ? INTERNAL : 0;
}
static int usual(void *context, const BuildOptions *o, const Input *i, u32 count) {
    const Triangles *t = &i->triangles;
    if (context != CONTEXT || count != 1 || o->flags || o->operation != 0x2161) return 0;
    if (o->motion.keys || o->motion.flags || o->motion.begin || o->motion.end || i->kind != 0x2141) return 0;
    if (!t->buffers[0] || t->buffers[0] % 4 || !t->vertices || t->vertices % 3 || t->format != 0x2121 || t->stride != 12) return 0;
    if (t->indices || t->triplets || t->index_format || t->index_stride || t->transform || t->flags[0] != 1) return 0;
    return t->records == 1 && !t->offsets && !t->offset_size && !t->offset_stride && !t->first && !t->transform_format;
}
static u32 sizes(void *context, const BuildOptions *o, const Input *i, u32 count, Sizes *s) {
    *s = (Sizes){ i->triangles.vertices * 16 + 1, 4097, 0 };
    return usual(context, o, i, count) ? 0 : INVALID;
}
static u32 build(void *context, void *stream, const BuildOptions *o, const Input *i, u32 count, u64 near, size_t near_size, u64 far, size_t far_size, u64 *handle, const void *emit, u32 emits) {
    if (!usual(context, o, i, count) || stream || emit || emits) return INVALID;
    if (!near || near % 128 || near_size < 4097 || !far || far % 128 || far_size < i->triangles.vertices * 16 + 1) return INVALID;
    memset((void *)(uintptr_t)near, 0x55, near_size); /* both are ours */
    memset((void *)(uintptr_t)far, 0x55, far_size);
    triangles = i->triangles.vertices / 3;
    float *copy = malloc(triangles * 36); /* the caller may give its own away */
    memcpy(copy, (void *)(uintptr_t)i->triangles.buffers[0], triangles * 36);
    vertices = copy;
    boxes = malloc(triangles * sizeof *boxes);
    for (u32 n = 0; n < triangles; n++) for (int k = 0; k < 2; k++) {
        const float *v = vertices + n * 9;
        boxes[n][0][k] = fminf(v[k], fminf(v[3 + k], v[6 + k]));
        boxes[n][1][k] = fmaxf(v[k], fmaxf(v[3 + k], v[6 + k]));
    }
    *handle = HANDLE;
    return has("build") ? INTERNAL : 0;
}
static u32 header(void *group, void *record) {
    int n = (int)((char *)group - (char *)0x300);
    if (n < 0 || n > 2 || (uintptr_t)record % 16) return INVALID;
    memset(record, 'a' + n, 32);
    return 0;
}
static int record(u64 at, int kind) {
    for (int n = 0; n < 32; n++) if (!at || at % 16 || ((char *)(uintptr_t)at)[n] != 'a' + kind) return 0;
    return 1;
}
static u32 launch(void *pipe, void *stream, u64 params, size_t size, const Table *t, u32 width, u32 height, u32 depth) {
    if (pipe != PIPELINE || stream || !params || size != params_size || height != 1 || depth != 1) return INVALID;
    if (!record(t->raygen, 0) || !record(t->miss.base, 1) || !record(t->hit.base, 2) || t->exception) return INVALID;
    if (t->miss.stride % 16 || t->miss.stride < 32 || t->miss.count != 1 || t->hit.stride % 16 || t->hit.stride < 32 || t->hit.count != 1) return INVALID;
    if (t->callables.base || t->callables.stride || t->callables.count) return INVALID;
    if (has("hang")) for (;;) { }
    if (has("launch")) return LAUNCH;
    char copy[256];
    memcpy(copy, (void *)(uintptr_t)params, size);
    for (u32 n = 0; n < width; n++) {
        u32 none = 0;
        if (!run(chosen[0], copy, n, &none, -1)) return LAUNCH;
    }
    return 0;
}
static u32 unused(void) { return INTERNAL; }

u32 optixQueryFunctionTable(int interface, u32 options, const u32 *keys, const void **values, void **table, size_t size) {
    if (interface != 41 || has("old")) return OLD;
    if (size != 38 * sizeof(void *)) return SIZE;
    if (options || keys || values) return INVALID;
    for (int n = 0; n < 38; n++) table[n] = unused;
    void *known[][2] = {
        { (void *)0, error_name }, { (void *)2, create_context }, { (void *)6, cache }, { (void *)12, module }, { (void *)15, groups },
        { (void *)18, pipeline }, { (void *)21, sizes }, { (void *)22, build }, { (void *)28, header }, { (void *)29, launch },
    };
    for (size_t n = 0; n < sizeof known / sizeof *known; n++) table[(uintptr_t)known[n][0]] = known[n][1];
    return 0;
}
