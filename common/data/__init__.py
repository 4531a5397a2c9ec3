"""What both sides know of data: files, copies of patients, columns' scales, sums over patients."""
