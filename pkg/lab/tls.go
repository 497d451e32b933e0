package lab

// TLS names the PEM files of an etcd that serves TLS and asks for client certificates.
type TLS struct {
	CA                    string // of the server's and of the clients' certificates
	ServerCert, ServerKey string
	ClientCert, ClientKey string // for the lab's own access to keys
}
