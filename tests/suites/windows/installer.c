/* A stand-in for an installer that registers a computer: it notes its command line, prints it, and leaves a service that
   is itself. A key that ends with "fail" makes it fail. */
#include <stdio.h>
#include <string.h>
#include <windows.h>

static SERVICE_STATUS_HANDLE handle;
static HANDLE ended;

static void tell(DWORD state) {
    SERVICE_STATUS status = { SERVICE_WIN32_OWN_PROCESS, state, SERVICE_ACCEPT_STOP, 0, 0, 0, 0 };
    SetServiceStatus(handle, &status);
}

static void WINAPI control(DWORD what) {
    if (what == SERVICE_CONTROL_STOP) SetEvent(ended);
}

static void WINAPI serve(DWORD count, LPSTR *words) {
    ended = CreateEventA(NULL, TRUE, FALSE, NULL);
    handle = RegisterServiceCtrlHandlerA("Parsec", control);
    tell(SERVICE_RUNNING);
    WaitForSingleObject(ended, 120000);
    tell(SERVICE_STOPPED);
}

int main(int count, char **words) {
    SERVICE_TABLE_ENTRYA table[] = { { "Parsec", serve }, { NULL, NULL } };
    if (count > 1 && !strcmp(words[1], "serve")) return !StartServiceCtrlDispatcherA(table);
    const char *line = GetCommandLineA();
    printf("%s\n", line);
    if (strstr(line, "fail")) return 2;
    FILE *note = fopen("C:\\called.txt", "w");
    if (!note || fprintf(note, "%s\n", line) < 0 || fclose(note)) return 3;
    char path[MAX_PATH];
    GetModuleFileNameA(NULL, path, sizeof path);
    if (!CopyFileA(path, "C:\\parsecd.exe", FALSE)) return 4;
    SC_HANDLE manager = OpenSCManagerA(NULL, NULL, SC_MANAGER_ALL_ACCESS);
    SC_HANDLE service = CreateServiceA(manager, "Parsec", "Parsec", SERVICE_ALL_ACCESS, SERVICE_WIN32_OWN_PROCESS,
                                       SERVICE_DEMAND_START, SERVICE_ERROR_NORMAL, "C:\\parsecd.exe serve", NULL, NULL,
                                       NULL, NULL, NULL);
    return service ? 0 : 5;
}
