/* An EFI program in place of a kernel: prints its name, then resets the machine (or returns, or hangs). */
typedef unsigned short CHAR16;
typedef unsigned long long UINTN;
#if defined(__x86_64__)
#define EFIAPI __attribute__((ms_abi))
#else
#define EFIAPI
#endif

struct output {
  void *reset;
  UINTN(EFIAPI *print)(struct output *, const CHAR16 *);
};
struct runtime {
  char header[24];
  void *other[10];
  void(EFIAPI *reset)(int, UINTN, UINTN, void *);
};
struct table {
  char header[24];
  CHAR16 *vendor;
  UINTN revision;
  void *input_handle, *input, *output_handle;
  struct output *output;
  void *error_handle, *error;
  struct runtime *runtime;
};

UINTN EFIAPI EfiMain(void *image, struct table *system) {
  system->output->print(system->output, (const CHAR16 *)NAME);
  system->runtime->reset(0, 0, 0, 0);
  return 0;
}
