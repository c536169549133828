echo "Hello from the image tool"
