/* The EFI loader of the stand-in for Windows Setup: with -DPROMPT it is the medium's ("Press any key to boot from CD or
 * DVD", 5 s, back to the firmware without a key), without it the one that the stand-in writes onto the target disk.
 * -DIGNORE_KEYS plays a keyboard that does not reach it. Either way it starts \no43\linux.efi of its own volume, and the
 * kernel is given the words of \no43\options.txt, the name of its initrd among them.
 *
 * Only what is used of the UEFI 2.10 specification is declared here; unused table entries are padding. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u64 status;
#define EFIAPI __attribute__((ms_abi))
#define FAILED(s) ((s) >> 63)
#define NOT_FOUND (1ULL << 63 | 14)
#define TIMED_OUT (1ULL << 63 | 18)

typedef struct { u32 a; u16 b, c; u8 d[8]; } guid;
static const guid LOADED_IMAGE = {0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const guid DEVICE_PATH = {0x09576e91, 0x6d3f, 0x11d2, {0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const guid FILE_SYSTEM = {0x964e5b22, 0x6459, 0x11d2, {0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};

typedef struct { u8 type, kind; u8 length[2]; } path_node;

typedef struct text_in { status(EFIAPI *reset)(struct text_in *, u8);
    status(EFIAPI *read_key)(struct text_in *, u16 key[2]); void *wait_for_key; } text_in;
typedef struct text_out { void *reset; status(EFIAPI *print)(struct text_out *, const u16 *); } text_out;

typedef struct { u8 header[24]; void *task[2]; void *pages[3];
    status(EFIAPI *allocate)(u32 type, u64 size, void **);       /* 64: after 2 TPL, 3 page functions */
    void *free_pool; void *create_event, *set_timer, *wait_event, *signal, *close, *check;
    void *install, *reinstall, *uninstall;
    status(EFIAPI *handle_protocol)(void *handle, const guid *, void **);
    void *reserved, *register_notify, *locate_handle, *locate_path, *install_table;
    status(EFIAPI *load_image)(u8 boot_policy, void *parent, path_node *, void *buffer, u64 size, void **image);
    status(EFIAPI *start_image)(void *image, u64 *exit_size, u16 **exit_data);
    void *exit, *unload, *exit_boot, *monotonic;
    status(EFIAPI *stall)(u64 microseconds);
} boot_services;

typedef struct { u8 header[24]; u16 *vendor; u32 revision; u32 pad; void *in_handle; text_in *in; void *out_handle;
    text_out *out; void *err_handle; text_out *err; void *runtime; boot_services *boot; } system_table;

typedef struct { u32 revision; u32 pad; void *parent; system_table *table; void *device; path_node *path; void *reserved;
    u32 options_size; u32 pad2; void *options; } loaded_image;

typedef struct file { u64 revision; status(EFIAPI *open)(struct file *, struct file **, const u16 *, u64 mode, u64 attributes);
    status(EFIAPI *close)(struct file *); void *delete; status(EFIAPI *read)(struct file *, u64 *size, void *); } file;
typedef struct volume { u64 revision; status(EFIAPI *open)(struct volume *, file **); } volume;

static const u16 KERNEL[] = u"\\no43\\linux.efi";

static status say(system_table *st, const u16 *text, status result)
{
    st->out->print(st->out, text);
    return result;
}

#ifdef PROMPT
static int key_pressed(system_table *st)
{
    u16 key[2];
    while (!FAILED(st->in->read_key(st->in, key))) { } /* what was typed before the prompt does not count */
    say(st, u"Press any key to boot from CD or DVD...", 0);
    for (int tenth = 0; tenth < 50; tenth++) {
#ifndef IGNORE_KEYS
        if (!FAILED(st->in->read_key(st->in, key)))
            return 1;
#endif
        if (tenth % 10 == 9)
            say(st, u".", 0);
        st->boot->stall(100000);
    }
    return 0;
}
#endif

/* The device's path with the kernel's file behind it: the kernel finds its initrd on the same volume by that. */
static path_node *kernel_path(system_table *st, path_node *device)
{
    u64 length = 0;
    while (((path_node *)((u8 *)device + length))->type != 0x7f)
        length += *(u16 *)((path_node *)((u8 *)device + length))->length;
    u8 *path;
    if (FAILED(st->boot->allocate(2, length + 4 + sizeof KERNEL + 4, (void **)&path)))
        return 0;
    for (u64 i = 0; i < length; i++)
        path[i] = ((u8 *)device)[i];
    u8 *at = path + length;
    u16 size = 4 + sizeof KERNEL;
    at[0] = 4; at[1] = 4; at[2] = (u8)size; at[3] = (u8)(size >> 8);
    for (u64 i = 0; i < sizeof KERNEL; i++)
        at[4 + i] = ((const u8 *)KERNEL)[i];
    at += size;
    at[0] = 0x7f; at[1] = 0xff; at[2] = 4; at[3] = 0;
    return (path_node *)path;
}

/* The first line of \no43\options.txt as UCS-2, at most 500 characters. */
static u64 read_options(system_table *st, void *device, u16 *into)
{
    static u8 bytes[501];
    volume *fs;
    file *root, *options;
    u64 size = sizeof bytes - 1, n = 0;
    if (FAILED(st->boot->handle_protocol(device, &FILE_SYSTEM, (void **)&fs)) || FAILED(fs->open(fs, &root)))
        return 0;
    if (!FAILED(root->open(root, &options, u"\\no43\\options.txt", 1, 0)) && !FAILED(options->read(options, &size, bytes)))
        for (; n < size && bytes[n] >= ' '; n++)
            into[n] = bytes[n];
    into[n] = 0;
    return (n + 1) * 2;
}

EFIAPI status efi_main(void *image, system_table *st)
{
    static u16 options[501];
    loaded_image *self, *kernel;
    path_node *device, *path;
    void *started;
    if (FAILED(st->boot->handle_protocol(image, &LOADED_IMAGE, (void **)&self))
        || FAILED(st->boot->handle_protocol(self->device, &DEVICE_PATH, (void **)&device)))
        return NOT_FOUND;
#ifdef PROMPT
    if (!key_pressed(st))
        return say(st, u"\r\n", TIMED_OUT);
#endif
    say(st, u"\r\nStand-in for Windows Setup: loading files...\r\n", 0);
    path = kernel_path(st, device);
    status result = path ? st->boot->load_image(0, image, path, 0, 0, &started) : NOT_FOUND;
    if (FAILED(result))
        return say(st, u"failed to load \\no43\\linux.efi\r\n", result);
    if (FAILED(st->boot->handle_protocol(started, &LOADED_IMAGE, (void **)&kernel)))
        return NOT_FOUND;
    kernel->options = options;
    kernel->options_size = (u32)read_options(st, self->device, options);
    return st->boot->start_image(started, 0, 0);
}
