package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"muster/initramfs/vm"
)

// screen shows two columns, and only ever adds lines: it is as good in a file as on a terminal.
type screen struct {
	w           io.Writer
	left, right int // characters
	bold, plain string
}

// rightColumn is for the head's table.
const rightColumn = 58

func newScreen(f *os.File) *screen {
	s := &screen{w: f, left: 96, right: rightColumn}
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
		s.left = max(40, int(size.Col)-rightColumn-3)
		s.bold, s.plain = "\x1b[1m", "\x1b[0m"
	}
	return s
}

func (s *screen) title(text string) { fmt.Fprintf(s.w, "\n%s%s%s\n", s.bold, text, s.plain) }
func (s *screen) text(text string)  { fmt.Fprint(s.w, text) }

// rows prints lines beside each other.
func (s *screen) rows(left, right []string) {
	left, right = wrap(left, s.left), wrap(right, s.right)
	for i := range max(len(left), len(right)) {
		fmt.Fprintf(s.w, "%-*s │ %s\n", s.left, at(left, i), at(right, i))
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}

func wrap(lines []string, width int) (wrapped []string) {
	for _, line := range lines {
		runes := []rune(line)
		for len(runes) > width {
			end := width
			for end > width/2 && runes[end] != ' ' { // a word that is too long for that is cut
				end--
			}
			if runes[end] != ' ' {
				end = width
			}
			wrapped = append(wrapped, string(runes[:end]))
			runes = append([]rune("  "), []rune(strings.TrimLeft(string(runes[end:]), " "))...)
		}
		wrapped = append(wrapped, string(runes))
	}
	return wrapped
}

// shown is what of a boot is on the screen.
type shown struct {
	screen *screen
	boot   *vm.Boot
	head   *vm.Head
	last   *regexp.Regexp // the line after which there is nothing more to see; nil for none
	lines  int
	table  string

	mu    sync.Mutex
	files []string // that were asked for
}

func (s *screen) begin(h *vm.Head) *shown {
	fmt.Fprintln(s.w)
	s.rows([]string{"the console of n0"}, []string{"muster certs list"})
	fmt.Fprintf(s.w, "%s┼%s\n", strings.Repeat("─", s.left+1), strings.Repeat("─", s.right+1))
	return &shown{screen: s, head: h}
}

// asked notes what iPXE fetches, which has no console of its own here.
func (s *shown) asked(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = append(s.files, "iPXE fetches "+path)
}

func (s *shown) fetched() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.files
	s.files = nil
	return files
}

// look adds what is new on either side.
func (s *shown) look() {
	lines := s.until(consoleLines(s.boot.Text()))
	left := append(s.fetched(), lines[s.lines:]...)
	var right []string
	if table, err := s.head.Admin("certs", "list"); err == nil && table != s.table {
		s.table = table
		right = strings.Split(strings.TrimRight(table, "\n"), "\n")
	}
	if len(left)+len(right) > 0 {
		s.screen.rows(left, right)
	}
	s.lines = len(lines)
}

func (s *shown) until(lines []string) []string {
	for i, line := range lines {
		if s.last != nil && s.last.MatchString(line) {
			return lines[:i+1]
		}
	}
	return lines
}

var (
	escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)
	useful  = regexp.MustCompile(`^(muster|root): `)
)

// consoleLines are the whole lines that are Muster's, or the root's.
func consoleLines(text string) (lines []string) {
	all := strings.Split(escapes.ReplaceAllString(text, ""), "\n")
	for _, line := range all[:len(all)-1] {
		line = strings.TrimRight(line, " ")
		if useful.MatchString(line) {
			lines = append(lines, line)
		}
	}
	return lines
}
