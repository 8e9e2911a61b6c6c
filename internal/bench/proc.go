package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of /proc/PID/stat: USER_HZ, which is 100 wherever Linux runs Go.
const tick = 10 * time.Millisecond

// cpu is the CPU time of a process and of the children that it has waited for (proc(5), stat fields
// 14 to 17).
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command's name may hold spaces and brackets: fields are counted from the last bracket.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat: cut short", pid)
	}
	var total time.Duration
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %v", pid, err)
		}
		total += time.Duration(n) * tick
	}
	return total, nil
}

// ownCPU is that of this process: the load generator.
func ownCPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// machineCPU is the time that the processors were not idle: of all processes, and stolen by the host
// (proc(5), stat: user nice system idle iowait irq softirq steal).
func machineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 9 {
		return 0, errors.New("/proc/stat: cut short")
	}
	var busy time.Duration
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %v", err)
		}
		if i != 3 && i != 4 {
			busy += time.Duration(n) * tick
		}
	}
	return busy, nil
}

// written is what a process has caused to be written to disk, in bytes.
func written(pid int) (float64, error) { return procNumber(pid, "io", "write_bytes:") }

// resident is a process's memory now, in MiB, peak the most that it ever had. Both count what it has
// touched of its store's map (mapped, the part of resident that the kernel can take back).
func resident(pid int) (float64, error) { return procMiB(pid, "VmRSS:") }

func peak(pid int) (float64, error) { return procMiB(pid, "VmHWM:") }

func mapped(pid int) (float64, error) { return procMiB(pid, "RssFile:") }

func procMiB(pid int, key string) (float64, error) {
	kib, err := procNumber(pid, "status", key)
	return kib / 1024, err
}

// procNumber is the number behind key in a file of /proc/PID.
func procNumber(pid int, file, key string) (float64, error) {
	path := fmt.Sprintf("/proc/%d/%s", pid, file)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if fields := bytes.Fields(line); len(fields) >= 2 && string(fields[0]) == key {
			return strconv.ParseFloat(string(fields[1]), 64)
		}
	}
	return 0, fmt.Errorf("%s: no %s", path, key)
}
