echo "Hello from the image app"
