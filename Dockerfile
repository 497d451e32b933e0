# make docker-image: the binary is built before, by make.
FROM alpine:3.22

RUN apk add --no-cache ca-certificates iproute2 iptables

ARG ARCH=amd64
COPY dist/flanneld-${ARCH} /opt/bin/flanneld
COPY mk-docker-opts.sh /opt/bin/mk-docker-opts.sh

ENTRYPOINT ["/opt/bin/flanneld"]
