// Bare is what no boot image of this kind can do without: an HTTPS request and a TPM command. It is the floor
// that imagebench measures the image beside, and never shipped.
package main

import (
	"fmt"
	"net/http"
	"os"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

func main() {
	device, err := linuxtpm.Open("/dev/tpm0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	defer device.Close()
	key, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate)}).Execute(device)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	resp, err := http.Get("https://" + string(key.Name.Buffer))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	resp.Body.Close()
}
