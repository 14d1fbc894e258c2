/* Starts systemd-boot, which lies beside it, and restarts the machine when it returns.
   systemd-boot returns to the firmware if a kernel cannot be loaded; most firmware then waits for a person. After a restart its counters
   choose the other slot. Names and layouts are of the UEFI specification, chapters 4 (system table), 7 (image services), 9 and 10
   (protocols, device paths). */
typedef unsigned short CHAR16;
typedef unsigned char UINT8;
typedef unsigned int UINT32;
typedef unsigned long long UINTN;
typedef void *HANDLE;
#if defined(__x86_64__)
#define EFIAPI __attribute__((ms_abi))
#define LOADER L"\\EFI\\systemd\\systemd-bootx64.efi"
#else
#define EFIAPI
#define LOADER L"\\EFI\\systemd\\systemd-bootaa64.efi"
#endif

struct guid {
  UINT32 a;
  unsigned short b, c;
  UINT8 d[8];
};
struct output {
  void *reset;
  UINTN(EFIAPI *print)(struct output *, const CHAR16 *);
};
struct runtime {
  char header[24];
  void *before[10];
  void(EFIAPI *reset)(int kind, UINTN status, UINTN size, void *data);
};
struct boot {
  char header[24];
  void *before[16];
  UINTN(EFIAPI *handle_protocol)(HANDLE, const struct guid *, void **);
  void *between[5];
  UINTN(EFIAPI *load_image)(UINT8 policy, HANDLE parent, void *path, void *buffer, UINTN size, HANDLE *image);
  UINTN(EFIAPI *start_image)(HANDLE, UINTN *size, CHAR16 **data);
  void *after[4];
  UINTN(EFIAPI *stall)(UINTN microseconds);
};
struct system {
  char header[24];
  CHAR16 *vendor;
  UINTN revision;
  HANDLE input_handle, input, output_handle;
  struct output *output;
  HANDLE error_handle, error;
  struct runtime *runtime;
  struct boot *boot;
};
struct loaded_image {
  UINT32 revision;
  HANDLE parent;
  void *system;
  HANDLE device;
};

static const struct guid LOADED_IMAGE = {0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const struct guid DEVICE_PATH = {0x09576e91, 0x6d3f, 0x11d2, {0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const CHAR16 NAME[] = LOADER;

/* The path of the loader on our own partition: its device path, a node with the file's name, the end. */
static int path_of_loader(const UINT8 *device, UINT8 *path, UINTN room) {
  UINTN at = 0;
  while (device[0] != 0x7f) {
    UINTN length = device[2] | device[3] << 8;
    if (length < 4 || at + length + 4 + sizeof NAME + 4 > room) return 0;
    for (UINTN i = 0; i < length; i++) path[at++] = device[i];
    device += length;
  }
  path[at++] = 4;
  path[at++] = 4;
  path[at++] = (4 + sizeof NAME) & 0xff;
  path[at++] = (4 + sizeof NAME) >> 8;
  for (UINTN i = 0; i < sizeof NAME; i++) path[at++] = ((const UINT8 *)NAME)[i];
  path[at++] = 0x7f;
  path[at++] = 0xff;
  path[at++] = 4;
  path[at++] = 0;
  return 1;
}

static void start_loader(HANDLE image, struct boot *boot) {
  static UINT8 path[1024];
  struct loaded_image *self;
  UINT8 *device;
  HANDLE loader;
  if (boot->handle_protocol(image, &LOADED_IMAGE, (void **)&self)) return;
  if (boot->handle_protocol(self->device, &DEVICE_PATH, (void **)&device)) return;
  if (!path_of_loader(device, path, sizeof path)) return;
  if (boot->load_image(0, image, path, 0, 0, &loader)) return;
  boot->start_image(loader, 0, 0);
}

UINTN EFIAPI EfiMain(HANDLE image, struct system *system) {
  start_loader(image, system->boot);
  system->output->print(system->output, L"spoke: the boot loader returned without a system: restart in 10 seconds\r\n");
  system->boot->stall(10 * 1000 * 1000);
  system->runtime->reset(0, 0, 0, 0);
  return 0;
}
