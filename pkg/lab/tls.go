package lab

// TLS are the PEM files of an etcd with TLS that requires client certificates.
type TLS struct {
	CA                    string // CA of the server's and of the clients' certificates
	ServerCert, ServerKey string
	ClientCert, ClientKey string // for the lab's own access to etcd
}
